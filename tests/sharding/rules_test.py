"""Names to places: no collision, no silent replication, and every published size lands on a mesh."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from configs.models import sizes
from internvl_jax.errors import InputError
from internvl_jax.models import InternVL, Runtime
from internvl_jax.sharding import PRESETS, make_mesh, shard, shardings, structure, use

DENSE = ["1b", "2b", "4b", "8b", "14b", "38b"]
EXPERTS = ["20b-a4b", "30b-a3b", "241b-a28b"]


def test_names_become_mesh_axes():
    rules = PRESETS["fsdp_tp"]
    assert rules.spec(("layers", "heads", None, "embed")) == P(None, "tensor", None, "fsdp")
    assert rules.spec(("batch", "time", "act_mlp")) == P(("data", "fsdp"), None, "tensor")


def test_two_dimensions_on_one_mesh_axis_are_refused():
    rules = dataclasses.replace(PRESETS["fsdp_tp"], embed=("fsdp", "tensor"))
    with pytest.raises(InputError, match=r"\('mlp', 'embed'\).*use one mesh axis twice"):
        rules.spec(("mlp", "embed"))


def test_an_indivisible_dimension_is_refused():
    mesh, rules = make_mesh({"fsdp": 2, "tensor": 4}), PRESETS["fsdp_tp"]
    assert rules.sharding(mesh, (8, 6), ("kv_heads", "embed")).shard_shape((8, 6)) == (2, 3)
    with pytest.raises(InputError, match="kv_heads of size 6 can't be spread over 4 devices"):
        rules.sharding(mesh, (6, 6), ("kv_heads", "embed"))


def test_a_name_for_each_dimension():
    with pytest.raises(ValueError):
        PRESETS["fsdp"].sharding(make_mesh({"fsdp": 8}), (8, 8), ("embed",))


def test_shard_constrains_inside_use_and_only_there():
    x = jnp.zeros((4, 3, 6))

    def place(mesh, rules):
        with use(mesh, rules):
            return jax.jit(lambda x: shard(x, "batch", "time", "act_mlp"))(x).sharding

    assert place(make_mesh({"fsdp": 4, "tensor": 2}), PRESETS["fsdp_tp"]).shard_shape(x.shape) == (1, 3, 3)
    assert place(make_mesh({"fsdp": 4}, jax.devices()[:4]), PRESETS["fsdp"]).shard_shape(x.shape) == (1, 3, 6)
    assert shard(x, "batch", "time", "act_mlp") is x
    with use(None, PRESETS["fsdp"]):
        assert shard(x, "batch", "time", "act_mlp") is x


@pytest.mark.parametrize(
    ("axes", "preset", "message"),
    [
        (
            {"context": 2, "fsdp": 4},
            "fsdp_tp",
            r"context=2: .*'context' out or take rules that do \(long_context\)$",
        ),
        (
            {"tensor": 8},
            "fsdp",
            r"tensor=8: .*; leave 'tensor' out or .* \(fsdp_tp, moe, long_context, serve_tp\)$",
        ),
    ],
)
def test_a_mesh_axis_that_spreads_nothing_is_refused(axes, preset, message):
    mesh, rules = make_mesh(axes), PRESETS[preset]
    with pytest.raises(InputError, match=message), use(mesh, rules):
        pass
    with pytest.raises(InputError, match=message):
        shardings(specs("1b"), mesh, rules)


def test_an_axis_of_experts_spreads_nothing_of_a_model_without():
    with pytest.raises(InputError, match="fsdp=2: the rules 'serve_tp' spread nothing"):
        shardings(specs("1b"), make_mesh({"fsdp": 2, "tensor": 4}), PRESETS["serve_tp"])
    mesh = make_mesh({"fsdp": 4, "expert": 2})
    shardings(specs("30b-a3b"), mesh, PRESETS["fsdp"])
    with pytest.raises(InputError, match=r"expert=2: the rules 'fsdp' .* \(moe, long_context, serve_tp\)"):
        shardings(specs("1b"), mesh, PRESETS["fsdp"])
    other = dataclasses.replace(PRESETS["fsdp"], time=("context",))
    shardings(specs("1b"), make_mesh({"fsdp": 4, "context": 2}), other)


def specs(size):
    return structure(InternVL, sizes.get(size), Runtime())[1]


@pytest.mark.parametrize("size", DENSE + EXPERTS)
def test_every_dimension_of_every_parameter_has_a_name(size):
    wrong = [path for path, spec in specs(size).items() if len(spec.shape) != len(spec.axes)]
    assert wrong == []
    for path, spec in specs(size).items():
        assert (spec.axes[0] == "layers") == (".layers." in path), path


# The vision tower is spread over one axis alone in every preset, hence the third column.
@pytest.mark.parametrize(
    ("preset", "axes", "tower"),
    [
        ("fsdp", {"fsdp": 8}, 8),
        ("fsdp", {"data": 2, "fsdp": 4}, 4),
        ("fsdp_tp", {"fsdp": 2, "tensor": 4}, 2),
        ("serve_tp", {"expert": 2, "tensor": 4}, 8),
        ("moe", {"fsdp": 2, "expert": 4}, 2),
        ("moe", {"fsdp": 2, "expert": 2, "tensor": 2}, 2),
        ("long_context", {"fsdp": 2, "context": 4}, 8),
        ("long_context", {"fsdp": 2, "context": 2, "tensor": 2}, 4),
    ],
)
@pytest.mark.parametrize("size", DENSE + EXPERTS)
def test_every_size_lands_on_a_mesh_and_nothing_large_is_replicated(size, preset, axes, tower):
    mesh = make_mesh(axes)
    where = shardings(specs(size), mesh, PRESETS[preset])
    whole = 8 // axes.get("data", 1)
    for path, spec in specs(size).items():
        copies = math.prod(spec.shape) // math.prod(where[path].shard_shape(spec.shape))
        if math.prod(spec.shape) > 2**20 and len(spec.axes) > 1 and not path.endswith(".experts.gate_up.bias"):
            whole_on_tensor = ("norm.scale", "norm1.scale", "norm2.scale", ".router.weight")
            if path.endswith(".router.weight") and preset == "serve_tp":
                continue  # every device chooses experts for all its tokens
            spread = tower if path.startswith("vit.") or path.endswith(whole_on_tensor) else whole
            if preset == "serve_tp" and not path.startswith("vit.") and ".experts." not in path:
                spread = axes["tensor"]  # the expert axis spreads rows: the rest is there once a group of rows
            assert copies >= spread, path
