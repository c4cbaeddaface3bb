"""How a picture becomes tiles, and so how many tokens it takes.

1. `choose_grid` picks the grid of square tiles whose shape is closest to the picture's (dynamic high resolution).
2. The picture is resized to fill the grid; with more than one tile a thumbnail of the whole picture follows.
3. Every tile becomes `tokens_per_tile` context tokens: `num_image_tokens`, which everybody counts with.
"""

import dataclasses
import functools
from typing import Annotated

from msgspec import Meta

from internvl_jax.errors import InputError
from internvl_jax.validation import Count, check_fields, check_value

# What Pillow itself refuses as a bomb; the largest cameras have less. Decoded it takes 4 bytes a pixel, 0.7 GB.
DEFAULT_MAX_PIXELS = 178_956_970
# The longest side that a JPEG can have. Resizing takes memory by the sides, up to 2 KB for each pixel of one (a row of
# tiles for every line, the filter's weights): gigabytes for 60,000,000 x 1 pixels.
MAX_SIDE = 65_535

Side = Annotated[int, Meta(ge=1, le=65536)]  # pixels
# More tiles than any model reads of a picture; the grids to choose from are listed, about 7 for every tile.
Tiles = Annotated[int, Meta(ge=1, le=4096)]


@dataclasses.dataclass(frozen=True)
class ImageConfig:
    """What has to be known to turn a picture into tiles and tokens.

    tile_size: pixels per side of a tile.
    tokens_per_tile: context tokens of one tile (256 in the released models, 448-pixel tiles).
    min_tiles, max_tiles: bounds on columns x rows, thumbnail not counted.
    thumbnail: whether the whole picture follows as one more tile when there is more than one.
    apply_exif: whether pictures are turned upright first; the release does not.
    max_pixels: larger pictures are refused before they are decoded; so are those with a side over MAX_SIDE.
    """

    tile_size: Side
    tokens_per_tile: Count
    min_tiles: Tiles
    max_tiles: Tiles
    thumbnail: bool
    apply_exif: bool
    max_pixels: Count

    def __post_init__(self) -> None:
        check_fields(self, "image options")
        if self.min_tiles > self.max_tiles:
            raise InputError(f"image options ask for at least {self.min_tiles} and at most {self.max_tiles} tiles.")


def limit_tiles(config: ImageConfig, max_tiles: int) -> ImageConfig:
    """The same options with another upper bound on the tiles of a picture; InputError for one that none can have."""
    check_value(max_tiles, Tiles, "max_tiles")
    return dataclasses.replace(config, min_tiles=min(config.min_tiles, max_tiles), max_tiles=max_tiles)


def share_tiles(config: ImageConfig, num_images: int) -> ImageConfig:
    """The options for each picture of a sample with several: the tile limit is shared out, at least one each.

    Source: released training code (dataset.py, multi-image samples).
    """
    return limit_tiles(config, max(1, config.max_tiles // max(1, num_images)))


def frame_tiles(config: ImageConfig) -> ImageConfig:
    """The options for a frame of a video, which has one tile, as released."""
    return limit_tiles(config, 1)


@functools.cache
def _grids(min_tiles: int, max_tiles: int) -> tuple[tuple[int, int], ...]:
    """Every (columns, rows) with an allowed number of tiles, by number of tiles."""
    grids = [
        (columns, rows)
        for columns in range(1, max_tiles + 1)
        for rows in range(1, max_tiles // columns + 1)
        if columns * rows >= min_tiles
    ]
    return tuple(sorted(grids, key=lambda grid: grid[0] * grid[1]))


def choose_grid(width: int, height: int, config: ImageConfig) -> tuple[int, int]:
    """(columns, rows) of the tiles for a picture of width x height pixels.

    The grid with the closest aspect ratio; of equally close ones the largest that the picture fills by more than half.
    Source: released `find_closest_aspect_ratio` (internvl_chat dataset.py). No two grids of the same number of tiles
    can tie for the best (checked for all sizes of the golden table), so their order does not matter.
    """
    if width < 1 or height < 1:
        raise InputError(f"a picture of {width} x {height} pixels cannot be tiled; both sides must be at least 1.")
    aspect = width / height
    best, best_distance = (1, 1), float("inf")
    for columns, rows in _grids(config.min_tiles, config.max_tiles):
        distance = abs(aspect - columns / rows)
        fills_half = width * height > 0.5 * config.tile_size**2 * columns * rows
        if distance < best_distance or (distance == best_distance and fills_half):
            best, best_distance = (columns, rows), distance
    return best


def num_tiles(width: int, height: int, config: ImageConfig) -> int:
    """Tiles of a picture of width x height pixels, the thumbnail included (there is none for a single tile)."""
    columns, rows = choose_grid(width, height, config)
    tiles = columns * rows
    return tiles + 1 if config.thumbnail and tiles > 1 else tiles


def num_image_tokens(width: int, height: int, config: ImageConfig) -> int:
    """Context tokens of a picture of width x height pixels (without the start and end tokens around them)."""
    return config.tokens_per_tile * num_tiles(width, height, config)
