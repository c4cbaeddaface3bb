"""What both frameworks are given: equal configs, prompts and batches, from numbers alone."""

import numpy as np

IMAGE_TOKEN = 151  # any id does


def released_config(vision: dict, text: dict, image_size: int, patch_size: int = 14) -> dict:
    """Keyword arguments of transformers' InternVLConfig.

    Args:
      vision, text: width, layers, heads, mlp; text also kv_heads, head_width and vocab.
    """
    return {
        "vision_config": {
            "model_type": "internvl_vision",
            "image_size": [image_size, image_size],
            "patch_size": [patch_size, patch_size],
            "hidden_size": vision["width"],
            "num_hidden_layers": vision["layers"],
            "num_attention_heads": vision["heads"],
            "intermediate_size": vision["mlp"],
            "attention_bias": True,
            "norm_type": "layer_norm",
            "layer_norm_eps": 1e-6,
            "use_qk_norm": False,
        },
        "text_config": {
            "model_type": "qwen3",
            "architectures": ["Qwen3ForCausalLM"],
            "hidden_size": text["width"],
            "num_hidden_layers": text["layers"],
            "num_attention_heads": text["heads"],
            "num_key_value_heads": text["kv_heads"],
            "head_dim": text["head_width"],
            "intermediate_size": text["mlp"],
            "vocab_size": text["vocab"],
            "rope_theta": 1000000.0,
            "tie_word_embeddings": False,
            "max_position_embeddings": 40960,
        },
        "image_token_id": IMAGE_TOKEN,
        "image_seq_length": (image_size // patch_size // 2) ** 2,
        "downsample_ratio": 0.5,
        "projector_hidden_act": "gelu",
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
        "tie_word_embeddings": False,
    }


INFERENCE = released_config(  # InternVL3.5-1B
    {"width": 1024, "layers": 24, "heads": 16, "mlp": 4096},
    {"width": 1024, "layers": 28, "heads": 16, "kv_heads": 8, "head_width": 128, "mlp": 3072, "vocab": 151936},
    image_size=448,
)
TRAIN = released_config(  # 111M parameters
    {"width": 512, "layers": 12, "heads": 8, "mlp": 2048},
    {"width": 512, "layers": 12, "heads": 8, "kv_heads": 4, "head_width": 64, "mlp": 1536, "vocab": 32000},
    image_size=224,
)
TINY = released_config(  # as the size of that name
    {"width": 96, "layers": 4, "heads": 4, "mlp": 192},
    {"width": 96, "layers": 2, "heads": 4, "kv_heads": 2, "head_width": 24, "mlp": 256, "vocab": 512},
    image_size=64,
    patch_size=8,
)


def prompt(config: dict, tokens: int, tiles: int) -> tuple[np.ndarray, np.ndarray]:
    """Token ids [T], those of images from the fourth on and the others above it, and uint8 tiles [G, S, S, 3]."""
    random = np.random.default_rng(0)
    image, token = config["image_seq_length"] * tiles, config["image_token_id"]
    tokens_T = random.integers(token + 1, config["text_config"]["vocab_size"], tokens, dtype=np.int32)
    tokens_T[4 : 4 + image] = token
    size = config["vision_config"]["image_size"][0]
    return tokens_T, random.integers(0, 256, (tiles, size, size, 3), dtype=np.uint8)


def mixed(
    config: dict, requests: int, prompts: tuple[int, int], answers: tuple[int, int], turn: int
) -> list[tuple[np.ndarray, np.ndarray, int]]:
    """(tokens, one tile, tokens of the answer) of requests whose lengths lie between two bounds: the same lengths at
    every turn, and other words and pictures.
    """
    lengths, random = np.random.default_rng(1), np.random.default_rng((2, turn))
    vocab, found = config["text_config"]["vocab_size"], []
    for _ in range(requests):
        length, new = (int(lengths.integers(low, high + 1)) for low, high in (prompts, answers))
        tokens_T, tiles_GHWC = prompt(config, length, 1)
        words_T = tokens_T != config["image_token_id"]
        tokens_T[words_T] = random.integers(config["image_token_id"] + 1, vocab, words_T.sum())
        found.append((tokens_T, random.integers(0, 256, tiles_GHWC.shape, dtype=np.uint8), new))
    return found
