"""Experts against a plain reference that computes every expert for every token: values, gradients, meshes."""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from configs.models import sizes
from internvl_jax.models.bricks import grouped
from internvl_jax.models.config import MoeConfig
from internvl_jax.models.language.families import kind_of
from internvl_jax.models.stack import Runtime, make_layers, run_layers
from internvl_jax.models.transforms.mxfp4_weight import Mxfp4Weight, packed, unpacked
from internvl_jax.sharding import PRESETS, abstract, bind, make_mesh, owners, shardings, use

E, K, D, F, B, T = 8, 3, 16, 7, 4, 5
CONFIG = dataclasses.replace(sizes.get("tiny").text, width=D, mlp=F, moe=MoeConfig(experts=E, per_token=K))


@pytest.fixture(scope="module")
def structure():
    return abstract(lambda rngs: kind_of(CONFIG).feed_forward(CONFIG, rngs))


@pytest.fixture(scope="module")
def given(structure):
    rng = np.random.default_rng(0)
    params = {path: rng.normal(size=spec.shape).astype(np.float32) for path, spec in structure[1].items()}
    return params, rng.normal(size=(B, T, D)).astype(np.float32), rng.normal(size=(B, T, D)).astype(np.float32)


def reference(params, x_BTD):
    """Every expert for every token, weighted by the renormalised probabilities of the chosen ones."""
    logits = jnp.einsum("btd,ed->bte", x_BTD, params["router.weight"])
    probabilities = jax.nn.softmax(logits, axis=-1)
    least = jnp.sort(probabilities, axis=-1)[..., -K, None]
    weights = jnp.where(probabilities >= least, probabilities, 0)
    weights = weights / weights.sum(axis=-1, keepdims=True)
    gate, up = (jnp.einsum("btd,efd->btef", x_BTD, params[f"experts.{name}.weight"]) for name in ("gate", "up"))
    out = jnp.einsum("btef,edf->bted", jax.nn.silu(gate) * up, params["experts.down.weight"])
    return jnp.einsum("bte,bted->btd", weights, out), logits


def brick(graphdef, params, x):
    out, routing = bind(graphdef, params)(x)
    return out, routing.logits_BTE


def run(function, params, x, g):
    """Output, logits, and the gradients of sum(output * g)."""

    def loss(params, x):
        out, logits = function(params, x)
        return jnp.sum(out * g), (out, logits)

    (_, outs), grads = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, x)
    return outs, grads


def same(found, expected):
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_values_and_gradients(structure, given):
    ours = functools.partial(brick, structure[0])
    same(jax.jit(lambda *given: run(ours, *given))(*given), run(reference, *given))


def test_no_token_is_dropped_when_all_want_one_expert(structure, given):
    params, x, g = given
    x = np.abs(x)
    params = params | {"router.weight": np.zeros_like(params["router.weight"])}
    params["router.weight"][5] = 3  # and the other choices are ties
    params["router.weight"][2] = 2
    params["router.weight"][7] = 1
    same(run(functools.partial(brick, structure[0]), params, x, g), run(reference, params, x, g))


def test_a_token_is_computed_as_if_alone(structure, given):
    params, x, _ = given
    moe = bind(structure[0], params)
    whole, alone = moe(x)[0], moe(x[2:3, 3:4])[0]
    np.testing.assert_allclose(alone[0, 0], whole[2, 3], rtol=1e-5, atol=1e-5)


MESHES = [
    ({"expert": 8}, "fsdp"),
    ({"fsdp": 4, "tensor": 2}, "fsdp_tp"),
    ({"fsdp": 4, "expert": 2}, "moe"),
    ({"data": 2, "expert": 2, "tensor": 2}, "moe"),
    ({"expert": 4, "tensor": 2}, "serve_tp"),
]
ROWS = (8, 64, D)  # enough for several chunks of rows on every one of these meshes


@pytest.fixture(scope="module", params=["qwen3", "gpt_oss"])
def wide(request):
    """A family's structure, parameters, inputs and what one device makes of them; also when all want one expert."""
    config = dataclasses.replace(CONFIG, family=request.param)
    graphdef, specs = abstract(lambda rngs: kind_of(config).feed_forward(config, rngs))
    rng = np.random.default_rng(1)
    params = {path: rng.normal(size=spec.shape).astype(np.float32) for path, spec in specs.items()}
    x, g = (rng.normal(size=ROWS).astype(np.float32) for _ in range(2))
    one_device = jax.jit(lambda *given: run(functools.partial(brick, graphdef), *given))
    crowded = params | {"router.weight": np.zeros_like(params["router.weight"])}
    crowded["router.weight"][:3] = np.array([3, 2, 1])[:, None]
    cases = [(params, x, g), (crowded, np.abs(x), g)]
    return graphdef, specs, [(case, jax.device_get(one_device(*case))) for case in cases]


def on_mesh(graphdef, specs, mesh, rules):
    """The brick with its gradients on a mesh, and where its inputs lie."""

    def sharded(*given):
        with use(mesh, rules):
            return run(functools.partial(brick, graphdef), *given)

    where, rows = shardings(specs, mesh, rules), NamedSharding(mesh, rules.spec(("batch", "time", None)))
    return jax.jit(sharded, in_shardings=(where, rows, rows), out_shardings=(None, (where, rows)))


@pytest.mark.parametrize(("mesh", "preset"), MESHES)
def test_any_mesh_equals_one_device(wide, mesh, preset):
    graphdef, specs, cases = wide
    mesh, rules = make_mesh(mesh), PRESETS[preset]
    program = on_mesh(graphdef, specs, mesh, rules)
    for given, expected in cases:
        same(program(*given), expected)
    down = shardings(specs, mesh, rules)["experts.down.weight"].shard_shape(specs["experts.down.weight"].shape)
    assert down[0] * mesh.shape["expert"] * mesh.shape["tensor"] == E


def test_packed_experts_are_gathered_as_they_lie(given):
    """Over the mesh axis that their inputs are spread over, too, and unpacked where they are multiplied."""
    params, x, _ = given

    def make(rngs):
        made = kind_of(CONFIG).feed_forward(CONFIG, rngs)
        for part in (made.experts.gate, made.experts.up, made.experts.down):
            part.weight = Mxfp4Weight(part.weight)
        return made

    (graphdef, specs), plain, found = abstract(make), dict(params), {}
    for path, value in params.items():
        if f"{path}.mxfp4" in specs:
            parts = jax.jit(packed)(value)
            found[f"{path}.mxfp4"], found[f"{path}.mxfp4_scale"] = parts
            plain[path] = unpacked(*parts, value.shape[-1], jnp.float32)
        else:
            found[path] = value
    mesh, rules = make_mesh({"fsdp": 2}, jax.devices()[:2]), PRESETS["fsdp"]
    where = shardings(specs, mesh, rules)
    assert where["experts.gate.weight.mxfp4"].shard_shape((E, F, 16)) == (E, F, 8)

    def sharded(params, x):
        with use(mesh, rules):
            return brick(graphdef, params, x)

    placed = {path: jax.device_put(value, where[path]) for path, value in found.items()}
    same(jax.jit(sharded)(placed, x), reference(plain, x))


def test_few_tokens_take_one_transfer_each_way(wide, monkeypatch):
    """As in decoding, with the same values and gradients."""
    graphdef, specs, cases = wide
    mesh, rules = make_mesh(MESHES[-1][0]), PRESETS[MESHES[-1][1]]
    monkeypatch.setattr(owners, "_FEW", ROWS[0] * ROWS[1])
    program = on_mesh(graphdef, specs, mesh, rules)
    for given, expected in cases:
        same(program(*given), expected)
    with use(mesh, rules):
        text = jax.jit(functools.partial(brick, graphdef)).lower(*cases[0][0][:2]).as_text()
    assert [text.count(f"stablehlo.{kind}") for kind in ("all_gather", "all_reduce", "reduce_scatter")] == [1, 1, 0]


def test_experts_stay_where_they_are(wide):
    """What travels is tokens, and a device's own experts over fsdp; nothing waits for a device inside a branch."""
    graphdef, specs, _ = wide
    mesh, rules = make_mesh({"fsdp": 2, "expert": 2, "tensor": 2}), PRESETS["moe"]
    params = {path: jax.ShapeDtypeStruct(spec.shape, spec.dtype) for path, spec in specs.items()}
    rows = jax.ShapeDtypeStruct(ROWS, jnp.float32)
    text = on_mesh(graphdef, specs, mesh, rules).lower(params, rows, rows).compile().as_text()
    moved = []
    for types, kind, rest in re.findall(r" = (.*?) (all-gather|all-reduce|reduce-scatter|all-to-all)\((.*)", text):
        assert "branch" not in rest and "cond" not in rest
        moved += [(kind, tuple(map(int, shape.split(",")))) for shape in re.findall(r"\[([\d,]+)\]", types)]
    experts = [(kind, shape) for kind, shape in moved if F in shape and {D, D // 2} & set(shape)]  # no biases
    assert experts and all(shape[0] == E // 4 for _, shape in experts)
    # Gradients are summed to a device's part; what more is summed (over axes of one device, on CPU) is that part.
    assert {kind for kind, shape in experts if D in shape} == {"all-gather"}
    assert "reduce-scatter" in {kind for kind, _ in experts}
    # Tokens of the two devices of the expert axis, once per token, not once per choice.
    tokens = ROWS[0] * ROWS[1] // 2
    assert ("all-gather", (tokens, D)) in moved and ("reduce-scatter", (tokens // 2, D)) in moved
    assert max(math.prod(shape) for _, shape in moved) == tokens * D
    # Neither does a skipped chunk make what the gradient would need of its rows.
    chunks = re.findall(r" = (.*?) conditional\(", text)
    assert chunks and not any(f"[{grouped.ROWS}," in types for types in chunks)


@pytest.mark.parametrize(
    ("family", "mesh", "preset"),
    [("gpt_oss", None, None), ("gpt_oss", *MESHES[-1]), ("qwen3", *MESHES[1])],
)
def test_layers_may_share_the_experts_of_all(family, mesh, preset):
    """Values and gradients are those of layers that have their own; also where weights are gathered."""
    config = dataclasses.replace(CONFIG, family=family)
    make = lambda rngs: kind_of(config).feed_forward(config, rngs)
    graphdef, specs = abstract(lambda rngs: make_layers(make, 2, rngs))
    rng = np.random.default_rng(2)
    params = {path: rng.normal(size=spec.shape).astype(np.float32) / 2 for path, spec in specs.items()}
    x = rng.normal(size=(8, 3, D)).astype(np.float32)
    mesh, rules = mesh and make_mesh(mesh), preset and PRESETS[preset]

    def program(whole):
        def loss(params, x):
            body = lambda moe, x, index, _: (moe(x, index=index)[0], None)
            with use(mesh, rules):
                out, _ = run_layers(bind(graphdef, params), x, None, body, Runtime(), whole)
            return jnp.sum(out), out

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))

    of_experts = lambda path, parameter: "expert" in parameter.get_metadata("axes")
    shared, own = program(of_experts)(params, x), program(None)(params, x)
    jax.tree.map(np.testing.assert_array_equal, shared, own)
