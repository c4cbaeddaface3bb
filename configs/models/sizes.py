"""Every size by name: the published ones (paper table 1), each also as Flash, and tiny ones for tests and the demo."""

import dataclasses
import math
from typing import Any

from internvl_jax.errors import InputError
from internvl_jax.models import FlashConfig, InternVLConfig, MoeConfig, TextConfig, VisionConfig, YarnConfig
from internvl_jax.validation import nearest

INTERN_VIT_300M = VisionConfig(
    image_size=448,
    patch_size=14,
    width=1024,
    layers=24,
    heads=16,
    mlp=4096,
    norm="layer_norm",
    norm_eps=1e-6,
    qkv_bias=True,
    qk_norm=False,
    drop_path=0.0,
    layer_scale_init=1.0,
    init_std=0.02,
)
INTERN_VIT_6B = VisionConfig(
    image_size=448,
    patch_size=14,
    width=3200,
    layers=45,
    heads=25,
    mlp=12800,
    norm="rms_norm",
    norm_eps=1e-6,
    qkv_bias=False,
    qk_norm=True,
    drop_path=0.0,
    layer_scale_init=0.1,
    init_std=1e-10,
)


def _qwen3(
    vision: VisionConfig, width: int, layers: int, heads: int, mlp: int, kv_heads: int = 8, moe: MoeConfig | None = None
) -> InternVLConfig:
    text = TextConfig(
        family="qwen3",
        vocab=151936,
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_width=128,
        mlp=mlp,
        moe=moe,
        window=None,
        rope_theta=1e6,
        yarn=None,
        ntk=None,
        norm_eps=1e-6,
        tie_embeddings=False,  # in every published size, also where the Qwen3 parent ties them
        init_std=0.02,
    )
    return InternVLConfig(vision, text, downsample_ratio=0.5, image_token_id=151671, flash=None)


_EXPERTS = MoeConfig(experts=128, per_token=8)

SIZES = {
    "1b": _qwen3(INTERN_VIT_300M, width=1024, layers=28, heads=16, mlp=3072),
    "2b": _qwen3(INTERN_VIT_300M, width=2048, layers=28, heads=16, mlp=6144),
    "4b": _qwen3(INTERN_VIT_300M, width=2560, layers=36, heads=32, mlp=9728),
    "8b": _qwen3(INTERN_VIT_300M, width=4096, layers=36, heads=32, mlp=12288),
    "14b": _qwen3(INTERN_VIT_300M, width=5120, layers=40, heads=40, mlp=17408),
    "38b": _qwen3(INTERN_VIT_6B, width=5120, layers=64, heads=64, mlp=25600),
    "30b-a3b": _qwen3(INTERN_VIT_300M, width=2048, layers=48, heads=32, mlp=768, kv_heads=4, moe=_EXPERTS),
    "241b-a28b": _qwen3(INTERN_VIT_6B, width=4096, layers=94, heads=64, mlp=1536, kv_heads=4, moe=_EXPERTS),
    "20b-a4b": InternVLConfig(
        INTERN_VIT_300M,
        TextConfig(
            family="gpt_oss",
            vocab=201088,
            width=2880,
            layers=24,
            heads=64,
            kv_heads=8,
            head_width=64,
            mlp=2880,
            moe=MoeConfig(experts=32, per_token=4),
            window=128,
            rope_theta=150000.0,
            yarn=YarnConfig(factor=32.0, beta_fast=32.0, beta_slow=1.0, positions=4096),
            ntk=None,
            norm_eps=1e-5,
            tie_embeddings=False,
            init_std=0.02,
        ),
        downsample_ratio=0.5,
        image_token_id=200021,  # not published: the third token added after GPT-OSS's last, 200018
        flash=None,
    ),
}


def like(base: InternVLConfig, vision: dict[str, Any], text: dict[str, Any], **fields: Any) -> InternVLConfig:
    """A model that differs from another one in these fields: of its vision tower, of its language model, of itself."""
    return dataclasses.replace(
        base,
        vision=dataclasses.replace(base.vision, **vision),
        text=dataclasses.replace(base.text, **text),
        **fields,
    )


# Learns easy-VQA from scratch on two cores; the vocabulary fits the tokenizer that the demo trains, and the image token
# is that tokenizer's to say.
TINY = like(
    SIZES["1b"],
    {"image_size": 64, "patch_size": 8, "width": 96, "layers": 4, "heads": 4, "mlp": 192, "init_std": 0.1},
    {
        "vocab": 512,
        "width": 96,
        "layers": 2,
        "heads": 4,
        "kv_heads": 2,
        "head_width": 24,
        "mlp": 256,
        "rope_theta": 1e4,
        "init_std": 0.1,
    },
    image_token_id=0,
)
SIZES |= {"tiny": TINY, "tiny-moe": like(TINY, {}, {"mlp": 64, "moe": MoeConfig(experts=8, per_token=2)})}

# The thresholds of the releases are not published. These leave the choice to the router: a tile is compressed where it
# finds that likelier than not, except a request's least likely one, which the released rule never compresses.
FLASH = FlashConfig(relative_threshold=0.0, absolute_threshold=0.5, heads=16, dropout=0.1)

SIZES |= {f"{name}-flash": dataclasses.replace(size, flash=FLASH) for name, size in SIZES.items() if "tiny" not in name}


def get(name: str) -> InternVLConfig:
    """The config of a size.

    Raises:
      InputError: no size has this name.
    """
    if name not in SIZES:
        raise InputError(f"no model size is called {name!r}{nearest(name, SIZES)}; the sizes are {', '.join(SIZES)}")
    return SIZES[name]


def nearest_to(model: InternVLConfig) -> str:
    """The name of the size that a model has, or that is most like it."""

    def distance(name: str) -> tuple[bool, bool, float, bool]:
        size, text = SIZES[name], model.text
        weights = lambda text: text.layers * text.width**2
        return (
            (size.text.moe is None) != (text.moe is None),
            size.text.family != text.family,
            abs(math.log(weights(size.text) / weights(text))),
            (size.flash is None) != (model.flash is None),
        )

    return min(SIZES, key=distance)
