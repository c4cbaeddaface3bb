"""The whole model on a toy whose sizes are pairwise different: what packing, batching and running must not change."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.models import sizes
from internvl_jax.data.rows.batch import RowConfig, Sample, assemble_row, stack_rows
from internvl_jax.errors import InputError
from internvl_jax.models import InternViT, InternVL, Runtime
from internvl_jax.models.bricks.nn import drop_path
from internvl_jax.models.internvl import normalise
from internvl_jax.sharding import abstract, bind

CONFIG = sizes.like(
    sizes.TINY,
    {"image_size": 12, "patch_size": 3, "width": 10, "layers": 4, "heads": 2, "mlp": 13, "init_std": 0.02},
    {
        "vocab": 37,
        "width": 14,
        "layers": 3,
        "heads": 6,
        "kv_heads": 3,
        "head_width": 8,
        "mlp": 17,
        "init_std": 0.02,
    },
    image_token_id=23,
)
TIED = dataclasses.replace(CONFIG, text=dataclasses.replace(CONFIG.text, tie_embeddings=True))
ROW = RowConfig(token_budget=31, tile_budget=3, tile_size=12, tokens_per_tile=4, image_token_id=23, weighting="square")


@functools.cache
def structure(config=CONFIG, runtime=Runtime()):  # noqa: B008
    return abstract(lambda rngs: InternVL(config, rngs, runtime))


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(7)
    return {
        path: rng.normal(float(path.endswith("scale")), 0.3, spec.shape).astype(np.float32)
        for path, spec in structure()[1].items()
    }


@functools.cache
def program(config=CONFIG, runtime=Runtime()):  # noqa: B008
    """(params, batch) -> logits, jitted; one compilation per shape of batch."""
    graphdef, _ = structure(config, runtime)

    def logits(params, batch):
        model = bind(graphdef, params)
        out = model(batch.tokens_BT, batch.tiles_GHWC, batch.tile_mask_G, batch.segments_BT, batch.positions_BT)
        return model.logits(out.hidden_BTD)

    run = jax.jit(logits)
    return lambda params, batch: jax.device_get(run(params, batch))


@functools.cache
def gradients(config=CONFIG, runtime=Runtime()):  # noqa: B008
    """(params, batch) -> loss and its gradient, jitted."""
    graphdef, _ = structure(config, runtime)

    def loss(params, batch):
        model = bind(graphdef, params)
        out = model(batch.tokens_BT, batch.tiles_GHWC, batch.tile_mask_G, batch.segments_BT, batch.positions_BT)
        logprobs_BTV = jax.nn.log_softmax(model.logits(out.hidden_BTD))
        picked_BT = jnp.take_along_axis(logprobs_BTV, batch.targets_BT[:, :, None], axis=2)[:, :, 0]
        return -jnp.sum(picked_BT * batch.weights_BT)

    run = jax.jit(jax.value_and_grad(loss))
    return lambda params, batch: jax.device_get(run(params, batch))


def sample(tiles: int, words: int, seed: int) -> Sample:
    """A word, the image tokens of every tile with a word between, then the other words."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, 20, 1 + words + 5 * tiles).astype(np.int32)
    tokens[1 : 1 + 5 * tiles] = np.where(np.arange(5 * tiles) % 5 < 4, ROW.image_token_id, tokens[1 : 1 + 5 * tiles])
    pixels = rng.integers(0, 256, (tiles, 12, 12, 3)).astype(np.uint8)
    return Sample(f"sample {seed}", tokens, np.arange(len(tokens)) > 0, pixels)


ONE, TEXT, TWO = sample(1, 3, 0), sample(0, 6, 1), sample(2, 2, 2)


def row(*samples: Sample):
    return assemble_row(samples, ROW)


def close(found, expected, tolerance=1e-5):
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


def test_packed_equals_the_samples_alone(params):
    packed = program()(params, row(ONE, TEXT, TWO))[0]
    start = 0
    for each in (ONE, TEXT, TWO):
        stop = start + len(each.tokens_T)
        close(packed[start:stop], program()(params, row(each))[0, : stop - start])
        start = stop


def test_a_batch_equals_its_rows(params):
    """Different numbers of tiles in every row, none in the second."""
    rows = [row(ONE), row(TEXT), row(TWO, ONE)]
    together = program()(params, stack_rows(rows))
    for index, each in enumerate(rows):
        real = each.segments_BT[0] > 0
        close(together[index][real], program()(params, each)[0][real])


def test_a_row_of_text_needs_no_tile(params):
    text = row(TEXT)
    without = text._replace(tiles_GHWC=text.tiles_GHWC[:0], tile_mask_G=text.tile_mask_G[:0])
    real = text.segments_BT > 0
    close(program()(params, without)[real], program()(params, text)[real])


@pytest.mark.parametrize("order", [(2, 0, 1), (0, 2, 1)])
def test_a_padding_tile_is_ignored_wherever_it_stands(params, order):
    batch = row(TWO)
    noisy = batch.tiles_GHWC.copy()
    noisy[2] = np.random.default_rng(0).integers(0, 256, noisy.shape[1:])
    moved = batch._replace(tiles_GHWC=noisy[list(order)], tile_mask_G=batch.tile_mask_G[list(order)])
    assert not moved.tile_mask_G.all()
    np.testing.assert_array_equal(program()(params, moved), program()(params, batch))


def test_the_order_of_images_matters(params):
    batch = row(TWO)
    swapped = batch._replace(tiles_GHWC=batch.tiles_GHWC[[1, 0, 2]])
    last = len(TWO.tokens_T) - 1
    assert np.max(np.abs(program()(params, batch)[0, last] - program()(params, swapped)[0, last])) > 1e-2


def test_a_later_image_changes_nothing_before_it(params):
    """Causal over image tokens too: also inside the image, which a feature of its own tile changes at once."""
    batch = row(TWO)
    second = np.flatnonzero(batch.tokens_BT[0] == ROW.image_token_id)[ROW.tokens_per_tile]
    other = batch.tiles_GHWC.copy()
    other[1] = 255 - other[1]
    before, after = program()(params, batch)[0], program()(params, batch._replace(tiles_GHWC=other))[0]
    np.testing.assert_array_equal(before[:second], after[:second])
    assert np.min(np.max(np.abs(before[second:16] - after[second:16]), axis=1)[: len(TWO.tokens_T) - second]) > 1e-3


def test_a_later_token_changes_no_earlier_image_token(params):
    batch = row(TWO)
    tokens = batch.tokens_BT.copy()
    between = 5  # the word between the two images
    assert tokens[0, between] != ROW.image_token_id == tokens[0, between - 1]
    tokens[0, between] += 1
    before, after = program()(params, batch)[0], program()(params, batch._replace(tokens_BT=tokens))[0]
    np.testing.assert_array_equal(before[:between], after[:between])
    assert np.max(np.abs(before[between] - after[between])) > 1e-3


def test_uint8_tiles_equal_normalised_ones(params):
    """Mean and deviation as the released transform applies them, in another order of operations."""
    batch = row(TWO)
    pixels = np.stack(
        [
            (batch.tiles_GHWC[..., channel] / 255.0 - mean) / std
            for channel, (mean, std) in enumerate([(0.485, 0.229), (0.456, 0.224), (0.406, 0.225)])
        ],
        axis=-1,
    ).astype(np.float32)
    np.testing.assert_allclose(normalise(batch.tiles_GHWC, jnp.float32), pixels, rtol=1e-5, atol=1e-6)
    real = batch.segments_BT > 0
    close(program()(params, batch._replace(tiles_GHWC=pixels))[real], program()(params, batch)[real])


def test_bfloat16_is_near_float32(params):
    batch = row(ONE, TEXT, TWO)
    exact, rounded = program()(params, batch), program(runtime=Runtime(dtype=jnp.bfloat16))(params, batch)
    assert rounded.dtype == jnp.float32
    real = batch.segments_BT > 0
    error, size = np.std((rounded - exact)[real]), np.std(exact[real])
    assert 1e-5 * size < error < 0.03 * size  # it did compute in bfloat16, and only rounded


@pytest.fixture(scope="module")
def reference(params):
    """Loss and gradients as they are by default."""
    return gradients()(params, row(ONE, TEXT, TWO))


def same_gradients(found, expected):
    assert float(found[0]) == pytest.approx(float(expected[0]), rel=1e-6)
    assert found[1].keys() == expected[1].keys()
    for path, grad in expected[1].items():
        np.testing.assert_allclose(found[1][path], grad, rtol=1e-4, atol=1e-5, err_msg=path)


@pytest.mark.parametrize(
    "given", [{"remat": "dots"}, {"remat": "full", "tile_groups": 3}, {"remat": "full", "offload": "gate"}]
)
def test_what_is_made_again_or_kept_elsewhere_changes_no_gradient(params, reference, given):
    same_gradients(gradients(runtime=Runtime(**given))(params, row(ONE, TEXT, TWO)), reference)


def test_groups_that_the_tiles_do_not_fill_are_refused(params):
    with pytest.raises(InputError, match="tile_groups 2 can't split 3 tiles on 1 devices; give a number"):
        program(runtime=Runtime(tile_groups=2))(params, row(ONE, TEXT, TWO))


def test_every_part_gets_a_gradient(reference):
    """Down to the first pixels: the features are not cut off from the tower."""
    nothing = [path for path, grad in reference[1].items() if not np.any(grad)]
    assert nothing == []
    for path in ("vit.patch.weight", "vit.cls", "vit.positions", "projector.norm.scale"):
        assert np.max(np.abs(reference[1][path])) > 1e-4, path


def test_the_place_of_an_image_token_takes_no_embedding(reference):
    grad_VD = reference[1]["lm.embed.weight"]
    assert not grad_VD[ROW.image_token_id].any() and grad_VD[ONE.tokens_T[0]].any()


def test_tied_embeddings_are_one_leaf_with_both_gradients(params):
    batch = row(ONE, TEXT, TWO)
    tied = {path: value for path, value in params.items() if path != "lm.head.weight"}
    assert tied.keys() == structure(TIED)[1].keys()
    value, grads = gradients(TIED)(tied, batch)
    twin_value, twin = gradients()(tied | {"lm.head.weight": params["lm.embed.weight"]}, batch)
    assert float(value) == pytest.approx(float(twin_value), rel=1e-6)
    close(grads["lm.embed.weight"], twin["lm.embed.weight"] + twin["lm.head.weight"], 1e-4)


def test_drop_path_in_the_tower(params):
    """Another key drops other branches; without a key, or at rate 0, nothing is dropped."""
    tower = {path.removeprefix("vit."): value for path, value in params.items() if path.startswith("vit.")}
    tiles = np.random.default_rng(1).normal(size=(5, 12, 12, 3)).astype(np.float32)

    def build(rate):
        config = dataclasses.replace(CONFIG.vision, drop_path=rate)
        graphdef, _ = abstract(lambda rngs: InternViT(config, rngs, Runtime()))
        run = jax.jit(lambda key: bind(graphdef, tower)(tiles, key))
        return lambda key: jax.device_get(run(key))

    keys = [jax.random.key(seed) for seed in range(3)]
    dropping = build(0.9)
    whole = build(0.0)(keys[0])
    close(dropping(None), whole)
    outputs = [dropping(key) for key in keys]
    assert all(np.max(np.abs(one - whole)) > 1e-2 for one in outputs)
    assert np.max(np.abs(outputs[0] - outputs[1])) > 1e-2
    np.testing.assert_array_equal(outputs[2], dropping(keys[2]))


def test_drop_path_takes_whole_tiles_and_keeps_the_expectation():
    x, rate, draws = np.ones((20011, 2, 3), np.float32), 0.3, 20011
    out = np.asarray(drop_path(x, jnp.float32(rate), jax.random.key(0)))
    kept = out[:, 0, 0] > 0
    np.testing.assert_array_equal(out, np.broadcast_to(out[:, :1, :1], out.shape))
    np.testing.assert_allclose(out[kept], 1 / (1 - rate), rtol=1e-6)
    deviation = np.sqrt(rate / (1 - rate) / draws)
    assert abs(out[:, 0, 0].mean() - 1) < 5 * deviation
    np.testing.assert_array_equal(drop_path(x, jnp.float32(0), jax.random.key(0)), x)


def test_groups_of_tiles_drop_branches_of_their_own(params):
    config = dataclasses.replace(CONFIG, vision=dataclasses.replace(CONFIG.vision, drop_path=0.9))
    graphdef, _ = structure(config, Runtime(tile_groups=3))
    tiles = np.full((6, 12, 12, 3), 99, np.uint8)
    found = jax.jit(lambda key: bind(graphdef, params).patches(tiles, key))(jax.random.key(0))
    assert not any(np.array_equal(found[group::3], found[2::3]) for group in range(2))
