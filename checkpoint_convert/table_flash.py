"""Rows of what the Flash models have besides: router and compressed branch; only the GitHub format has them."""

from checkpoint_convert.rows import Row
from checkpoint_convert.table_intern_vit import linear, norm


def rows() -> list[Row]:
    return [*_pooling("pooling_before_gating", "router.pooling"), *_gating("gating", "router"), *_compressed("mlp2")]


def _pooling(theirs: str, ours: str) -> list[Row]:
    found = [Row(f"{theirs}.query_token", f"{ours}.query", "1 d -> d")]
    for i in range(1, 5):
        attention, target = f"{theirs}.attn{i}", f"{ours}.attn{i}"
        found += [
            Row(f"{attention}.in_proj_weight", f"{target}.qkv.weight", "(qkv n h) d -> qkv n h d"),
            Row(f"{attention}.in_proj_bias", f"{target}.qkv.bias", "(qkv n h) -> qkv n h"),
            Row(f"{attention}.out_proj.weight", f"{target}.proj.weight", "d (n h) -> d n h"),
            Row(f"{attention}.out_proj.bias", f"{target}.proj.bias"),
            *norm(f"{theirs}.norm{i}", f"{ours}.norm{i}"),
        ]
    return found


def _gating(theirs: str, ours: str) -> list[Row]:
    """Blocks are numbered from 1, so they are named one by one."""
    stacked = lambda part: tuple(f"{theirs}.block{i}.{part}" for i in range(1, 5))
    blocks = [
        Row(stacked("0.weight"), f"{ours}.blocks.fc1.weight"),
        Row(stacked("0.bias"), f"{ours}.blocks.fc1.bias"),
        Row(stacked("3.weight"), f"{ours}.blocks.fc2.weight"),
        Row(stacked("3.bias"), f"{ours}.blocks.fc2.bias"),
        Row(stacked("5.weight"), f"{ours}.blocks.norm.scale"),
        Row(stacked("5.bias"), f"{ours}.blocks.norm.bias"),
    ]
    return [*blocks, *norm(f"{theirs}.gate.0", f"{ours}.norm"), *linear(f"{theirs}.gate.1", f"{ours}.head")]


def _compressed(theirs: str) -> list[Row]:
    """Dropout and GELU take numbers too."""
    layers = [
        row for i, name in ((1, "fc1"), (4, "fc2"), (7, "fc3")) for row in linear(f"{theirs}.{i}", f"compressed.{name}")
    ]
    return [*norm(f"{theirs}.0", "compressed.norm"), *layers]
