"""Grids and token counts: the released table, and what holds for any picture."""

import dataclasses

import numpy as np
import pytest

from internvl_jax.data.media import images, tiling
from internvl_jax.errors import InputError

CONFIG = tiling.ImageConfig(
    tile_size=448,
    tokens_per_tile=256,
    min_tiles=1,
    max_tiles=12,
    thumbnail=True,
    apply_exif=False,
    max_pixels=tiling.DEFAULT_MAX_PIXELS,
)


def test_grids_equal_the_released_ones_for_thousands_of_sizes(golden):
    table = np.load(golden / "preprocessing" / "arrays.npz")
    rows = zip(
        table["grid_sizes"].tolist(), table["grid_min_max"].tolist(), table["grid_expected"].tolist(), strict=True
    )
    wrong = []
    for (width, height), (low, high), expected in rows:
        config = dataclasses.replace(CONFIG, min_tiles=low, max_tiles=high)
        if tiling.choose_grid(width, height, config) != tuple(expected):
            wrong.append((width, height, low, high))
    assert len(table["grid_sizes"]) > 3000
    assert wrong == []


@pytest.mark.parametrize("max_tiles", [1, 2, 5, 12, 40])
def test_counts_stay_within_bounds_for_any_size(max_tiles):
    config = tiling.limit_tiles(CONFIG, max_tiles)
    rng = np.random.default_rng(0)
    sizes = np.exp(rng.uniform(0, np.log(30_000), size=(2_000, 2))).astype(int)
    extremes = [(1, 1), (1, 100_000), (100_000, 1), (3, 7), (448, 448), (449, 447)]
    for width, height in [*sizes.tolist(), *extremes]:
        columns, rows = tiling.choose_grid(width, height, config)
        assert 1 <= columns * rows <= max_tiles
        expected = columns * rows + (columns * rows > 1)
        assert tiling.num_tiles(width, height, config) == expected
        assert tiling.num_image_tokens(width, height, config) == 256 * expected


def test_the_count_is_what_tiling_really_gives():
    config = dataclasses.replace(CONFIG, tile_size=7, tokens_per_tile=3)
    rng = np.random.default_rng(1)
    for width, height in [*rng.integers(1, 60, size=(60, 2)).tolist(), (1, 90), (90, 1)]:
        tiles = images.tile_image(images.Image.new("RGB", (width, height)), config)
        assert tiles.shape == (tiling.num_tiles(width, height, config), 7, 7, 3)


def test_one_tile_has_no_thumbnail():
    assert tiling.num_tiles(4000, 300, tiling.limit_tiles(CONFIG, 1)) == 1
    assert tiling.num_tiles(448, 448, CONFIG) == 1
    assert tiling.num_tiles(896, 448, CONFIG) == 3
    assert tiling.num_tiles(896, 448, dataclasses.replace(CONFIG, thumbnail=False)) == 2


def test_ties_go_to_the_larger_grid_only_if_the_picture_fills_half_of_it():
    """1:1 fits 1x1, 2x2 and 3x3 equally; 2x2 has 4 tiles, so half of it is 2 x 448 x 448 pixels."""
    half = (2 * 448 * 448) ** 0.5
    assert tiling.choose_grid(int(half), int(half), CONFIG) == (1, 1)
    assert tiling.choose_grid(int(half) + 1, int(half) + 1, CONFIG) == (2, 2)


def test_several_pictures_share_the_limit():
    assert [tiling.share_tiles(CONFIG, n).max_tiles for n in (0, 1, 2, 5, 12, 13, 100)] == [12, 12, 6, 2, 1, 1, 1]
    narrow = dataclasses.replace(CONFIG, min_tiles=4)
    assert tiling.share_tiles(narrow, 6).min_tiles == 2


@pytest.mark.parametrize("width, height", [(0, 5), (5, 0), (-3, 5)])
def test_empty_pictures_are_refused(width, height):
    with pytest.raises(InputError, match=f"{width} x {height}"):
        tiling.num_tiles(width, height, CONFIG)


def test_impossible_options_are_refused():
    with pytest.raises(InputError, match="max_tiles is 0"):
        tiling.limit_tiles(CONFIG, 0)
    with pytest.raises(InputError, match="at least 13 and at most 12"):
        dataclasses.replace(CONFIG, min_tiles=13)
