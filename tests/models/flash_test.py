"""Flash models: two resolutions of a tile in one row, and the router, on a toy whose sizes are pairwise different."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from checkpoint_convert import load_model
from internvl_jax import sharding
from internvl_jax.errors import InputError
from internvl_jax.models import Encoded, FlashConfig, InternVL, InternVLConfig, Runtime, Slots
from internvl_jax.models.bricks.nn import dropout
from internvl_jax.models.internvl import _chosen
from internvl_jax.sharding import abstract, bind
from tests.models.internvl_test import CONFIG as SMALL

FLASH = FlashConfig(relative_threshold=0.0, absolute_threshold=0.5, heads=5, dropout=0.1)
VISION = dataclasses.replace(SMALL.vision, image_size=24, layers=1)  # 8 x 8 patches: 16 tokens or 4
CONFIG = dataclasses.replace(SMALL, vision=VISION, flash=FLASH)
IMAGE, FULL, SHORT = CONFIG.image_token_id, CONFIG.tokens_per_tile, CONFIG.tokens_per_compressed_tile
assert (FULL, SHORT) == (16, 4)


@functools.cache
def structure(config=CONFIG, dtype="float32"):
    return abstract(lambda rngs: InternVL(config, rngs, Runtime(dtype=jnp.dtype(dtype))))


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(7)
    return {
        path: rng.normal(float(path.endswith("scale")), 0.3, spec.shape).astype(np.float32)
        for path, spec in structure()[1].items()
    }


@pytest.fixture(scope="module")
def tiles():
    return np.random.default_rng(3).integers(0, 256, (4, 24, 24, 3)).astype(np.uint8)


@functools.cache
def program(config=CONFIG):
    """(params, tokens, tiles, mask, segments, positions, compress) -> logits, jitted."""
    graphdef, _ = structure(config)

    @jax.jit
    def run(params, *batch, compress):
        model = bind(graphdef, params)
        slots = None if compress is None else Slots.in_order(batch[2], compress, len(batch[0]))
        return model.logits(model(*batch, slots=slots).hidden_BTD)

    return lambda params, *batch, compress=None: jax.device_get(run(params, *batch, compress=compress))


def prompt(compress, seed):
    """A word, every tile's image tokens with a word after them, two words."""
    words = np.random.default_rng(seed).integers(1, 20, len(compress) + 3)
    parts = [[words[0]]]
    for short, word in zip(compress, words[3:], strict=True):
        parts.append([IMAGE] * (SHORT if short else FULL) + [word])
    return np.concatenate([*parts, words[1:3]]).astype(np.int32)


def row(*prompts, length=64):
    """`tokens, segments, positions`, each [1, length]."""
    pad = lambda arrays: np.pad(np.concatenate(arrays), (0, length - sum(map(len, prompts))))[None].astype(np.int32)
    segments = [np.full(len(each), number) for number, each in enumerate(prompts, 1)]
    return pad(prompts), pad(segments), pad([np.arange(len(each)) for each in prompts])


def logits(params, tokens, segments, positions, tiles, mask, compress, config=CONFIG):
    mask, compress = np.asarray(mask), None if compress is None else np.asarray(compress)
    return program(config)(params, tokens, tiles, mask, segments, positions, compress=compress)


def close(found, expected, tolerance=1e-5):
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


def test_nothing_compressed_is_the_base_model(params, tiles):
    base = dataclasses.replace(CONFIG, flash=None)
    batch = (*row(prompt((0, 0), 0)), tiles, [True, False, True, False])
    assert structure(base)[1].keys() == {p for p in params if not p.startswith(("router.", "compressed."))}
    expected = logits({path: params[path] for path in structure(base)[1]}, *batch, None, config=base)
    np.testing.assert_array_equal(logits(params, *batch, None), expected)
    close(logits(params, *batch, [False] * 4), expected)


def test_packed_samples_equal_single_ones(params, tiles):
    """The tiles of a packed row are chosen one by one; padding among them takes no image token."""
    decisions = [(1,), (0, 1), ()]
    samples = [prompt(each, seed) for seed, each in enumerate(decisions)]
    mask, compress = np.array([True, True, True, False]), np.array([True, False, True, True])
    packed = logits(params, *row(*samples), tiles, mask, compress)[0]
    moved = [0, 3, 1, 2]
    close(packed, logits(params, *row(*samples), tiles[moved], mask[moved], compress[moved])[0])
    start = first = 0
    for sample, each in zip(samples, decisions, strict=True):
        own = np.resize(tiles[first : first + len(each)] if each else tiles, tiles.shape)
        mask, compress = np.arange(4) < len(each), np.resize(np.array(each or (0,), bool), 4)
        alone = logits(params, *row(sample), own, mask, compress)[0]
        close(packed[start : start + len(sample)], alone[: len(sample)])
        start, first = start + len(sample), first + len(each)


def test_the_resolution_of_a_tile_matters_only_from_its_tokens_on(params, tiles):
    short, full = prompt((1, 1), 0), prompt((1, 0), 0)
    same = 1 + SHORT + 1
    batch = (tiles, [True, True, False, False])
    one, two = (logits(params, *row(each), *batch, [True, each is short, True, False])[0] for each in (short, full))
    np.testing.assert_array_equal(one[:same], two[:same])
    assert np.max(np.abs(one[len(short) - 1] - two[len(full) - 1])) > 1e-3


@pytest.mark.parametrize("seed", range(5))
def test_rows_take_their_features_in_order(seed):
    rng = np.random.default_rng(seed)
    rows, per_row, P, Q, D = 3, 5, 7, 2, 4
    features, compressed = (rng.normal(size=(rows * per_row, count, D)).astype(np.float32) for count in (P, Q))
    mask, compress = rng.random((2, rows * per_row)) < 0.6
    found = np.asarray(_chosen(Encoded(features, compressed, None), Slots.in_order(mask, compress, rows), 99))
    for b in range(rows):
        tiles = [g for g in range(b * per_row, (b + 1) * per_row) if mask[g]]
        wanted = [compressed[g] if compress[g] else features[g] for g in tiles]
        wanted = np.concatenate([np.zeros((0, D)), *wanted])
        np.testing.assert_array_equal(found[b, : len(wanted)], wanted)


@pytest.mark.parametrize("config", [CONFIG, dataclasses.replace(CONFIG, flash=None)])
def test_slots_that_share_a_tile_equal_copies_of_it(params, tiles, config):
    """Two texts about the same two tiles, in one row; the second text's first tile is compressed in a Flash model."""
    short = config.flash is not None
    graphdef, specs = structure(config)
    rows = row(prompt((0, 0), 0), prompt((int(short), 0), 1), length=96)
    shared = Slots(np.array([[0, 1, 0, 1, -1]], np.int32), np.array([[False, False, short, False, False]]))
    copies = Slots(np.array([[0, 1, 2, 3, -1]], np.int32), shared.compress_BJ)

    @jax.jit
    def run(params, tiles, slots):
        model = bind(graphdef, params)
        out = model(rows[0], tiles, np.ones(len(tiles), bool), *rows[1:], slots=slots)
        return model.logits(out.hidden_BTD)

    params = {path: params[path] for path in specs}
    close(run(params, tiles[:2], shared), run(params, np.concatenate([tiles[:2]] * 2), copies))


def test_gradients_reach_router_and_compressed_branch(params, tiles):
    """Every parameter but the two attentions and norms that the released forward pass leaves out."""
    graphdef, _ = structure()
    tokens, segments, positions = row(prompt((1, 0), 0))
    mask, compress = np.array([True, True, False, False]), np.array([True, False, False, False])

    def loss(params):
        model = bind(graphdef, params)
        slots = Slots.in_order(mask, compress, 1)
        out = model(tokens, tiles, mask, segments, positions, slots=slots)
        route_G2 = jax.nn.log_softmax(model.encode(tiles).route_G2)
        return -jnp.sum(route_G2[:, 1]) + jnp.sum(jax.nn.log_softmax(model.logits(out.hidden_BTD))[0, :, 3])

    grads = jax.device_get(jax.jit(jax.grad(loss))(params))
    nothing = {path for path, grad in grads.items() if not np.any(grad)}
    unused = tuple(f"router.pooling.{part}." for part in ("attn3", "attn4", "norm3", "norm4"))
    assert nothing == {path for path in params if path.startswith(unused)}


def test_dropout_is_only_for_training(params, tiles):
    graphdef, _ = structure()
    encode = jax.jit(lambda key: bind(graphdef, params).encode(tiles, key))
    plain, one, two = encode(None), encode(jax.random.key(1)), encode(jax.random.key(2))
    close(one.features_GPD, plain.features_GPD)  # the tower has no drop path here, mlp1 no dropout
    for name in ("compressed_GPD", "route_G2"):
        draws = [np.asarray(getattr(encoded, name)) for encoded in (plain, one, two)]
        assert all(np.max(np.abs(draws[i] - draws[i - 1])) > 1e-3 for i in range(3))
    np.testing.assert_array_equal(encode(jax.random.key(1)).route_G2, one.route_G2)


def test_dropout_keeps_the_expectation():
    x = jnp.ones((307, 211))
    out = np.asarray(dropout(x, 0.1, jax.random.key(0)))
    assert np.allclose(out[out > 0], 1 / 0.9) and abs(out.mean() - 1) < 5 * np.sqrt(0.1 / 0.9 / out.size)
    assert dropout(x, 0.0, jax.random.key(0)) is x and dropout(x, 0.1, None) is x


def test_the_router_decides_in_float32(params, tiles):
    found = {}
    for dtype in ("float32", "bfloat16"):
        graphdef, _ = structure(dtype=dtype)
        encoded = jax.jit(lambda params, graphdef=graphdef: bind(graphdef, params).encode(tiles))(params)
        assert encoded.route_G2.dtype == jnp.float32 and encoded.compressed_GPD.dtype == dtype
        found[dtype] = np.asarray(encoded.probability_G)
    assert 0 < np.max(np.abs(found["float32"] - found["bfloat16"])) < 0.1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"flash": dataclasses.replace(FLASH, heads=3)}, "3 heads"),
        ({"vision": dataclasses.replace(VISION, image_size=18)}, "divisible by 4"),
    ],
)
def test_a_config_that_cannot_be(change, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(CONFIG, **change)


def test_the_config_survives_json():
    assert InternVLConfig.from_dict(CONFIG.to_dict()) == CONFIG
    broken = CONFIG.to_dict() | {"flash": {"heads": 16}}
    with pytest.raises(InputError, match=r"model\.flash of config\.json lacks"):
        InternVLConfig.from_dict(broken)


@pytest.mark.parametrize("values", [None, ["vision"], "2b"])
def test_a_config_that_is_no_object_is_named(values):
    with pytest.raises(InputError, match=r"model of config\.json is .*, not an object"):
        InternVLConfig.from_dict(values)


def test_a_mesh_equals_one_device(golden):
    """Two rows, tiles of both resolutions among them, on 2 x 2 x 2 devices."""
    mesh, rules = sharding.make_mesh({"data": 2, "fsdp": 2, "tensor": 2}), sharding.PRESETS["fsdp_tp"]
    found = []
    for place in ((), (mesh, rules)):
        model = load_model(golden / "flash_qwen3_github", "float32", *place, image_token_id=312)
        config, rng = model.config, np.random.default_rng(5)
        compress_G = np.arange(8) % 3 == 1
        counts = np.where(compress_G, config.tokens_per_compressed_tile, config.tokens_per_tile).reshape(4, 2)
        tokens_BT = np.zeros((4, int(counts.sum(axis=1).max()) + 7), np.int32)
        segments_BT = np.zeros_like(tokens_BT)
        for b, count in enumerate(counts.sum(axis=1)):
            tokens_BT[b, : count + 7] = [*rng.integers(1, 300, 3), *[312] * count, *rng.integers(1, 300, 4)]
            segments_BT[b, : count + 7] = 1
        side = config.vision.image_size
        tiles_GHWC = rng.integers(0, 256, (8, side, side, 3)).astype(np.uint8)
        positions_BT = np.broadcast_to(np.arange(tokens_BT.shape[1], dtype=np.int32), tokens_BT.shape)
        batch = tokens_BT, tiles_GHWC, np.ones(8, bool), segments_BT, positions_BT
        graphdef = nnx.split(model, nnx.Param)[0]

        def run(params, compress_G, *batch, graphdef=graphdef, place=place):
            with sharding.use(*(place or (None, None))):
                model = sharding.bind(graphdef, params)
                out = model(*batch, slots=Slots.in_order(batch[2], compress_G, 4))
                return model.logits(out.hidden_BTD), model.encode(batch[1]).route_G2

        found.append(jax.device_get(jax.jit(run)(sharding.flatten(model), compress_G, *batch)))
    (logits, gate), (logits_one, gate_one) = found[1], found[0]
    real = segments_BT > 0
    close(logits[real], logits_one[real])
    close(gate, gate_one, 1e-4)


def test_thresholds_of_a_model_are_shares():
    with pytest.raises(InputError, match=r"FlashConfig\.relative_threshold is 1\.5; it must be a number from 0 to 1"):
        dataclasses.replace(FLASH, relative_threshold=1.5)
