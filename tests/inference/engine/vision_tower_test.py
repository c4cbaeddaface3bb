"""The vision half by itself gives the features that an engine's own tower gives, to the last bit."""

import math

import jax
import numpy as np
import pytest

from internvl_jax.errors import InputError
from internvl_jax.inference import EncodedTiles, Engine, VisionTower, Vocabulary, load, save_model
from internvl_jax.models import InternVL, VisionHalf
from internvl_jax.sharding import bind, flatten, make_mesh, structure
from tests.inference.engine.engine_test import LADDERS

SIZES = (1, 4)


def half(kind, model, device=None):
    """A half of a model, with its parameters; committed to the device, if one is given."""
    (graphdef, specs), params = structure(kind, model.config, model.runtime), flatten(model)
    return bind(graphdef, {path: jax.device_put(params[path], device) for path in specs})


def tiles_of(count, seed=0):
    return np.random.default_rng(seed).integers(0, 255, (count, 28, 28, 3), dtype=np.uint8)


def kept(engine, tiles_GHWC):
    """What an engine keeps of tiles that pass its tower together: features and probabilities."""
    names = engine.tiles.names(tiles_GHWC)
    engine.tiles.clear()
    probability_G = engine.route(tiles_GHWC)
    return np.asarray(engine.tiles.pool_GPD)[engine.tiles.places(names)], probability_G


def near(found, wanted):
    """As the table of tolerances has it."""
    for mine, other in zip(found[:2], wanted[:2], strict=True):
        np.testing.assert_allclose(mine, other, rtol=0, atol=1e-5 * np.max(np.abs(other)))
    np.testing.assert_allclose(found.probability_G, wanted.probability_G, rtol=0, atol=3e-5)


@pytest.fixture(scope="module")
def saved(tmp_path_factory, flash_model, processor):
    directory = tmp_path_factory.mktemp("flash") / "model"
    save_model(directory, flatten(flash_model), flash_model.config, processor)
    return directory


@pytest.mark.parametrize("sizes", [None, {"data": 2}, {"data": 2, "expert": 2}], ids=str)
def test_features_have_the_bits_of_the_engines_own_tower(saved, processor, sizes):
    """Of as many tiles at a time, padding included. (Other numbers of tiles may be summed in another order.)"""
    mesh = sizes and make_mesh(sizes, jax.devices()[: math.prod(sizes.values())])
    whole, vision = (load(saved, "float32", mesh, part=part)[0] for part in ("all", "vision"))
    engine, tower = Engine(whole, Vocabulary.of(processor), LADDERS), VisionTower(vision, LADDERS.tiles)
    assert tower.sizes == engine.ladders.tiles
    for count in (1, 3, 5):
        tiles_GHWC = tiles_of(count)
        wanted_GPD, probability_G = kept(engine, tiles_GHWC)
        found = tower.encode(tiles_GHWC)
        assert np.concatenate([found.features_GPD, found.compressed_GPD], axis=1).tobytes() == wanted_GPD.tobytes()
        np.testing.assert_array_equal(found.probability_G, probability_G)


def test_a_mesh_that_only_the_vision_half_fits_gives_the_same_features(saved, flash_model):
    vision, _ = load(saved, "float32", make_mesh({"tensor": 4}, jax.devices()[:4]), part="vision")
    tower = VisionTower(vision, (1, 6))
    assert tower.sizes == (4, 8)
    near(tower.encode(tiles_of(6)), VisionTower(half(VisionHalf, flash_model), (6,)).encode(tiles_of(6)))


def test_any_number_of_tiles_in_pieces(flash_model):
    tower = VisionTower(half(VisionHalf, flash_model), SIZES)
    assert tower.warm_up() == len(SIZES)
    tiles_GHWC = tiles_of(10)
    found = tower.encode(tiles_GHWC)
    for g in range(10):
        alone = tower.encode(tiles_GHWC[g : g + 1])
        near(EncodedTiles(*(each[0] for each in alone)), EncodedTiles(*(each[g] for each in found)))
    features, compressed, probability = tower.encode(tiles_GHWC[:0])
    assert features.shape == (0, 4, 40) and compressed.shape == (0, 1, 40) and probability.shape == (0,)
    assert tower.num_compiled == len(SIZES)


def test_a_model_without_router(model):
    assert isinstance(model, InternVL)
    found = VisionTower(model, SIZES).encode(tiles_of(2))
    wanted_GPD = jax.jit(lambda tiles_GHWC: model.encode(tiles_GHWC))(tiles_of(2)).features_GPD
    np.testing.assert_allclose(found.features_GPD, wanted_GPD, atol=1e-5)
    assert found.compressed_GPD is None and found.probability_G is None


@pytest.mark.parametrize(
    "tiles_GHWC",
    [np.zeros((2, 14, 14, 3), np.uint8), np.zeros((2, 28, 28, 3), np.float32), np.zeros((28, 28, 3), np.uint8)],
)
def test_tiles_of_other_kinds(model, tiles_GHWC):
    with pytest.raises(InputError, match=r"the model's are uint8 of shape \('tiles', 28, 28, 3\)"):
        VisionTower(model, SIZES).encode(tiles_GHWC)
    with pytest.raises(InputError, match="the ladder of tiles is"):
        VisionTower(model, (4, 1))
