"""Rows read forwards and backwards: there and back gives the same bits."""

import numpy as np
import pytest
from safetensors.numpy import load_file

from checkpoint_convert import load_model
from checkpoint_convert.rows import Row, to_released
from checkpoint_convert.tables import TABLES
from internvl_jax.sharding import flatten

VIT = "vision_tower.encoder.layer"


@pytest.mark.parametrize("form", ["github", "hf"])
@pytest.mark.parametrize("qk_norm", [False, True])
def test_there_and_back(factory, form, qk_norm):
    config = factory.config(qk_norm=qk_norm)
    params = factory.params(config)
    rows = [row for row in TABLES[form, "qwen3"].rows if row.target in params]
    tensors = dict(to_released(rows, params))
    for row in rows:
        leaf = params[row.target]
        for position, names in row.names(leaf.shape):
            assert {tensors[name].shape for name in names} == {row.source_shape(leaf.shape)}
            again = row.forwards([tensors.pop(name) for name in names], leaf.shape)
            assert again.shape == leaf[position].shape
            assert np.array_equal(again, leaf[position])
    assert not tensors


def test_backwards_gives_exactly_the_names_of_a_released_file(factory, golden):
    names = load_file(golden / "chat_qwen3_github" / "model.safetensors").keys()
    config = factory.config()  # as many layers as that file, other sizes
    assert set(factory.tensors("github", config)) == names
    shards = sorted((golden / "hf_qwen3").glob("*.safetensors"))
    assert set(factory.tensors("hf", config)) == {name for shard in shards for name in load_file(shard)}


def test_a_flash_checkpoint_comes_back_bit_by_bit(golden):
    """Also what its forward pass never uses."""
    tensors = load_file(golden / "flash_qwen3_github" / "model.safetensors")
    params = flatten(load_model(golden / "flash_qwen3_github", "float32", image_token_id=312))
    again = dict(to_released(TABLES["github", "qwen3"].rows, {path: np.asarray(leaf) for path, leaf in params.items()}))
    assert again.keys() == tensors.keys()
    assert all(np.array_equal(again[name], tensor) for name, tensor in tensors.items())
    assert "pooling_before_gating.attn4.in_proj_bias" in tensors


def test_fused_qkv_is_q_then_k_then_v_and_heads_are_outermost():
    row = Row("qkv", "t", "(qkv n h) d -> qkv n h d")
    fused = np.arange(3 * 5 * 7 * 2).reshape(3 * 5 * 7, 2)
    ours = row.forwards([fused], (3, 5, 7, 2))
    assert np.array_equal(ours[1, 2], fused[5 * 7 + 2 * 7 : 5 * 7 + 3 * 7])
    parts = Row(("q", "k", "v"), "t", "qkv (n h) d -> qkv n h d")
    assert np.array_equal(parts.forwards(np.split(fused, 3), (3, 5, 7, 2)), ours)


def test_layer_and_expert_placeholders_count_the_leading_axes():
    row = Row("layers.{i}.experts.{e}.w", "moe.w")
    names = dict(row.names((2, 3, 5, 7)))
    assert names[1, 2] == ("layers.1.experts.2.w",)
    assert len(names) == 6 and row.source_shape((2, 3, 5, 7)) == (5, 7)


def test_a_parameter_without_a_row_is_an_error(factory):
    params = factory.params(factory.config()) | {"lm.layers.moe.router.weight": np.zeros((3, 2))}
    with pytest.raises(ValueError, match=r"moe\.router"):
        list(to_released(TABLES["hf", "qwen3"].rows, params))


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("model.language_model.layers.0.mlp.up_proj.weight", "language_model.model.layers.0.mlp.up_proj.weight"),
        ("model.language_model.embed_tokens.weight", "language_model.model.embed_tokens.weight"),
        ("lm_head.weight", "language_model.lm_head.weight"),
        ("language_model.lm_head.weight", "language_model.lm_head.weight"),
        ("model.multi_modal_projector.linear_1.bias", "multi_modal_projector.linear_1.bias"),
        (
            "model.vision_tower.encoder.layer.3.attn.q_norm.weight",
            "vision_tower.encoder.layer.3.attention.q_norm.weight",
        ),
        ("vision_tower.encoder.layer.3.attn.k_norm.weight", "vision_tower.encoder.layer.3.attention.k_norm.weight"),
    ],
)
def test_other_spellings_of_hf_names(name, canonical):
    assert TABLES["hf", "qwen3"].canonical(name) == canonical


def test_every_name_of_a_table_is_its_own_canonical_spelling():
    for table in TABLES.values():
        for row in table.rows:
            for template in row.templates:
                name = template.format(i=0, e=0)
                assert table.canonical(name) == name
