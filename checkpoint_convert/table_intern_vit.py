"""Rows of InternViT (300M and 6B style) and of the projector, in both released formats.

Rows of parts that one style lacks (biases of LayerNorm, q/k norms) are simply unused for it.
"""

from checkpoint_convert.rows import Row


def norm(source: str, target: str) -> list[Row]:
    return [Row(f"{source}.weight", f"{target}.scale"), Row(f"{source}.bias", f"{target}.bias")]


def linear(source: str, target: str) -> list[Row]:
    return [Row(f"{source}.weight", f"{target}.weight"), Row(f"{source}.bias", f"{target}.bias")]


def github_tower(source: str, target: str) -> list[Row]:
    """InternVisionModel; `source` and `target` are prefixes ('vision_model.', 'vit.'; both empty for a bare tower)."""
    layer, ours = f"{source}encoder.layers.{{i}}", f"{target}layers"
    return [
        Row(f"{source}embeddings.patch_embedding.weight", f"{target}patch.weight", "d c h w -> d h w c"),
        Row(f"{source}embeddings.patch_embedding.bias", f"{target}patch.bias"),
        Row(f"{source}embeddings.class_embedding", f"{target}cls", "1 1 d -> d"),
        Row(f"{source}embeddings.position_embedding", f"{target}positions", "1 p d -> p d"),
        Row(f"{layer}.attn.qkv.weight", f"{ours}.attn.qkv.weight", "(qkv n h) d -> qkv n h d"),
        Row(f"{layer}.attn.qkv.bias", f"{ours}.attn.qkv.bias", "(qkv n h) -> qkv n h"),
        Row(f"{layer}.attn.q_norm.weight", f"{ours}.attn.q_norm.scale", "(n h) -> n h"),
        Row(f"{layer}.attn.k_norm.weight", f"{ours}.attn.k_norm.scale", "(n h) -> n h"),
        Row(f"{layer}.attn.proj.weight", f"{ours}.attn.proj.weight", "d (n h) -> d n h"),
        Row(f"{layer}.attn.proj.bias", f"{ours}.attn.proj.bias"),
        Row(f"{layer}.ls1", f"{ours}.ls1"),
        Row(f"{layer}.ls2", f"{ours}.ls2"),
        *norm(f"{layer}.norm1", f"{ours}.norm1"),
        *norm(f"{layer}.norm2", f"{ours}.norm2"),
        *linear(f"{layer}.mlp.fc1", f"{ours}.mlp.fc1"),
        *linear(f"{layer}.mlp.fc2", f"{ours}.mlp.fc2"),
    ]


def hf_tower() -> list[Row]:
    layer, ours = "vision_tower.encoder.layer.{i}", "vit.layers"
    attention = f"{layer}.attention"
    return [
        Row("vision_tower.embeddings.patch_embeddings.projection.weight", "vit.patch.weight", "d c h w -> d h w c"),
        Row("vision_tower.embeddings.patch_embeddings.projection.bias", "vit.patch.bias"),
        Row("vision_tower.embeddings.cls_token", "vit.cls", "1 1 d -> d"),
        Row("vision_tower.embeddings.position_embeddings", "vit.positions", "1 p d -> p d"),
        Row(
            tuple(f"{attention}.{part}_proj.weight" for part in "qkv"),
            f"{ours}.attn.qkv.weight",
            "qkv (n h) d -> qkv n h d",
        ),
        Row(tuple(f"{attention}.{part}_proj.bias" for part in "qkv"), f"{ours}.attn.qkv.bias", "qkv (n h) -> qkv n h"),
        Row(f"{attention}.q_norm.weight", f"{ours}.attn.q_norm.scale", "(n h) -> n h"),
        Row(f"{attention}.k_norm.weight", f"{ours}.attn.k_norm.scale", "(n h) -> n h"),
        Row(f"{attention}.projection_layer.weight", f"{ours}.attn.proj.weight", "d (n h) -> d n h"),
        Row(f"{attention}.projection_layer.bias", f"{ours}.attn.proj.bias"),
        Row(f"{layer}.lambda_1", f"{ours}.ls1"),
        Row(f"{layer}.lambda_2", f"{ours}.ls2"),
        *norm(f"{layer}.layernorm_before", f"{ours}.norm1"),
        *norm(f"{layer}.layernorm_after", f"{ours}.norm2"),
        *linear(f"{layer}.mlp.fc1", f"{ours}.mlp.fc1"),
        *linear(f"{layer}.mlp.fc2", f"{ours}.mlp.fc2"),
    ]


def projector(first: str, fc1: str, fc2: str) -> list[Row]:
    """The projector, whose three parts the formats name differently."""
    return [*norm(first, "projector.norm"), *linear(fc1, "projector.fc1"), *linear(fc2, "projector.fc2")]
