"""The language model over its stack of layers: programs of generation use experts where they lie in it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.models import sizes
from internvl_jax.models import Runtime, SlotCache
from internvl_jax.models.config import MoeConfig
from internvl_jax.models.language import decoder
from internvl_jax.sharding import PRESETS, abstract, bind, make_mesh, shardings, use

B, T, S = 8, 6, 8
TEXT = dataclasses.replace(sizes.get("tiny").text, width=16, mlp=6, moe=MoeConfig(experts=8, per_token=3))
FAMILIES = {
    "qwen3": (TEXT, "8x6x16"),
    "gpt_oss": (dataclasses.replace(TEXT, family="gpt_oss", window=4), "8x2x6x16"),
}


@pytest.fixture(scope="module", params=FAMILIES)
def given(request):
    """A family's text config, parameters, and the shape of a layer's experts as a program shows it."""
    text, layer = FAMILIES[request.param]
    specs = abstract(lambda rngs: decoder.Decoder(text, rngs, Runtime()))[1]
    rng = np.random.default_rng(0)
    draw = lambda spec: (rng.normal(size=spec.shape) / 4).astype(np.float32)
    return text, {path: draw(spec) for path, spec in specs.items()}, layer


def programs(text, params, mesh, rules, dtype=jnp.float32):
    """What a prompt without its last token, that token alone, and the whole in training give; with their parameters."""
    graphdef, specs = abstract(lambda rngs: decoder.Decoder(text, rngs, Runtime(dtype)))
    x_BTD = np.random.default_rng(1).normal(size=(B, T, text.width)).astype(dtype)
    segments_BT, positions_BT = np.ones((B, T), np.int32), np.tile(np.arange(T, dtype=np.int32), (B, 1))
    where = None if mesh is None else shardings(specs, mesh, rules)

    def compiled(function):
        def traced(params):
            with use(mesh, rules):
                return function(bind(graphdef, params))

        return jax.jit(traced, in_shardings=(where,)), jax.device_put(params, where)

    def prefill(model):
        out = model(x_BTD[:, :-1], segments_BT[:, :-1], positions_BT[:, :-1], collect=("kv",))
        return out.hidden_BTD, out.kv_LBMTH

    def decode(model):
        half = np.random.default_rng(2).normal(size=(text.layers, B, text.kv_heads, S, text.head_width)).astype(dtype)
        cache = SlotCache((jnp.asarray(half),), (jnp.asarray(half),), S)
        last = (part[:, -1:] for part in (x_BTD, segments_BT, positions_BT))
        out = model(*last, cache, positions_BT[:, -1:])
        return out.hidden_BTD, out.cache.k[0], out.cache.v[0]

    def train(model):
        return jnp.sum(model(x_BTD, segments_BT, positions_BT).hidden_BTD)

    return {function.__name__: compiled(function) for function in (prefill, decode, train)}


MESHES = [(None, None), ({"data": 2, "expert": 2, "tensor": 2}, "serve_tp")]


@pytest.mark.parametrize(("mesh", "preset"), MESHES)
def test_generation_reads_experts_in_the_stack(given, mesh, preset, monkeypatch):
    """And finds the very values that it finds in copies of them."""
    text, params, layer = given
    make = functools.partial(programs, text, params, mesh and make_mesh(mesh), preset and PRESETS[preset])
    lowered = lambda: {name: (program.lower(placed), placed) for name, (program, placed) in make().items()}
    ours = lowered()
    monkeypatch.setattr(decoder, "_of_experts", None)
    copying = lowered()
    copy = f"tensor<1x{layer}xf32>"
    assert all(copy in program.as_text() for program, _ in (ours["train"], *copying.values()))
    for name in ("prefill", "decode"):
        assert copy not in ours[name][0].as_text()
        found, expected = (program.compile()(placed) for program, placed in (ours[name], copying[name]))
        jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize(
    ("mesh", "preset", "dtype"), [(None, None, jnp.bfloat16), ({"fsdp": 4, "expert": 2}, "moe", jnp.float32)]
)
def test_a_layer_is_copied_where_the_stack_would_be_cast_or_gathered(given, mesh, preset, dtype):
    text, params, layer = given
    mesh, rules = mesh and make_mesh(mesh), preset and PRESETS[preset]
    program, placed = programs(text, params, mesh, rules, dtype)["decode"]
    assert f"tensor<1x{layer}xf32>" in program.lower(placed).as_text()


@pytest.mark.parametrize("name", ["prefill", "decode"])
def test_generation_cuts_matrices_out_of_the_stack(given, name):
    """A product takes a layer's matrix where it lies; training, and weights of several inputs, are as they were."""
    text, params, _ = given
    made = programs(text, params, None, None)
    cut = lambda name, *shape: f"tensor<1x{'x'.join(map(str, shape))}xf32>" in made[name][0].lower(params).as_text()
    for heads in (text.heads, text.kv_heads):
        assert cut("train", heads, text.head_width, text.width)
        assert not cut(name, heads, text.head_width, text.width) and cut(name, heads * text.head_width, text.width)
    assert cut(name, text.width, text.heads, text.head_width)
