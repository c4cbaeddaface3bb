"""A picture of what a Flash model's router decides: every tile with its tokens and the probability of "compress".

Tiles stand where the model sees them, the thumbnail of a picture beside it, several pictures below one another.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from internvl_jax.data import Processor, images, tiling
from internvl_jax.errors import InputError
from internvl_jax.inference import MODEL_THRESHOLDS, Thresholds, get_engine
from internvl_jax.models import InternVL

_SIDE = 224  # pixels of a drawn tile
_GAP = 12
_FULL, _COMPRESSED = (214, 69, 38), (26, 137, 84)  # red keeps, green compresses
_TINT = 0.25  # of the colour over a compressed tile


def router_overlay(
    model: InternVL, processor: Processor, sources: Sequence[images.Source], thresholds: Thresholds = MODEL_THRESHOLDS
) -> Image.Image:
    """Draws the router's decisions about the pictures of one request.

    Args:
      model, processor: as `load` gives them.
      sources: all pictures of a request (paths, bytes or PIL pictures): decisions depend on all of its tiles.
      thresholds: those of the request.

    Raises:
      InputError: the model has no router, or there is no picture, or one that can't be read.
    """
    if model.config.flash is None:
        raise InputError("this model has no router, so there is nothing to draw; give a Flash model")
    if not sources:
        raise InputError("there is no picture to draw the router's decisions over; give one")
    config = processor.image_config
    pictures = [images.load_image(source, config) for source in sources]
    tiles = [images.tile_image(picture, config) for picture in pictures]
    probability_G = get_engine(model, processor).route(np.concatenate(tiles))
    compress_G = thresholds.decide(probability_G, model.config.flash)
    tokens = (model.config.tokens_per_tile, model.config.tokens_per_compressed_tile)
    boards, first = [], 0
    for picture, tiles_GHWC in zip(pictures, tiles, strict=True):
        part = slice(first, first + len(tiles_GHWC))
        grid = tiling.choose_grid(*picture.size, config)
        boards.append(_board(tiles_GHWC, grid, probability_G[part], compress_G[part], tokens))
        first = part.stop
    return _stack(boards)


def _board(
    tiles_GHWC: np.ndarray,
    grid: tuple[int, int],
    probability_G: np.ndarray,
    compress_G: np.ndarray,
    tokens: tuple[int, int],
) -> Image.Image:
    """One picture; a tile beyond the grid is its thumbnail."""
    columns, rows = grid
    beside = len(tiles_GHWC) > columns * rows
    size = (columns * _SIDE + (_GAP + _SIDE if beside else 0), rows * _SIDE)
    board = Image.new("RGB", size, "white")
    for number, (tile_HWC, p, compress) in enumerate(zip(tiles_GHWC, probability_G, compress_G, strict=True)):
        row, column = divmod(number, columns)
        corner = (column * _SIDE, row * _SIDE) if row < rows else (columns * _SIDE + _GAP, 0)
        name, count = "" if row < rows else "thumbnail\n", tokens[int(compress)]
        label = f"{name}{count} token{'s' if count > 1 else ''}\np = {p:.2f}"
        board.paste(_tile(tile_HWC, label, bool(compress)), corner)
    return board


def _tile(tile_HWC: np.ndarray, text: str, compress: bool) -> Image.Image:
    colour = _COMPRESSED if compress else _FULL
    tile = Image.fromarray(tile_HWC).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
    if compress:
        tile = Image.blend(tile, Image.new("RGB", tile.size, colour), _TINT)
    draw = ImageDraw.Draw(tile)
    draw.rectangle((0, 0, _SIDE - 1, _SIDE - 1), outline=colour, width=4)
    font = ImageFont.load_default(_SIDE // 12)
    left, top, right, bottom = draw.multiline_textbbox((12, 10), text, font=font)
    draw.rectangle((left - 6, top - 5, right + 6, bottom + 5), fill=colour)
    draw.multiline_text((12, 10), text, fill="white", font=font)
    return tile


def _stack(boards: Sequence[Image.Image]) -> Image.Image:
    whole = Image.new("RGB", (max(b.width for b in boards), sum(b.height + _GAP for b in boards) - _GAP), "white")
    top = 0
    for board in boards:
        whole.paste(board, (0, top))
        top += board.height + _GAP
    return whole
