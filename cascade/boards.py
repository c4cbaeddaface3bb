"""Boards: pictures cut into boxes, in each nothing, one large or several small handwritten digits.

1. The digits are scikit-learn's: 1,797 of them, 8 x 8 pixels. A fixed rule deals them out to three splits, and no
   picture mixes two.
2. A `BoardLayout` says how many digits each box holds: 0, 1 (large), or up to 4 (small, one a quarter). A box is as
   large as a tile, so a tile is empty, easy or crowded, and a router has something to find.
3. `draw` fills a layout with digits of a split and paints it: shapes, strokes, ink, paper and noise vary, and shapes
   and strokes more so in training.
"""

import functools
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image

Split = Literal["train", "dev", "test"]

BOX = 32  # pixels along a side
DIGITS = 10
_QUARTERS = ((0, 0), (0, 1), (1, 0), (1, 1))  # row and column of a box's quarters, in reading order

# How many digits the boxes of a board hold that are not empty, in any order.
HOLDINGS = ((4,), (3, 1), (4, 1), (3, 1, 1), (4, 1, 1), (3, 3))
GRIDS = ((3, 2), (2, 3))  # columns, rows
SPREAD = 1.7  # training digits vary so much more in shape: they are few, and are not to be learned by heart


class Digits(NamedTuple):
    """Ink from 0 to 1, `[N, 8, 8]` float32, and what each digit is, `[N]`."""

    ink_NHW: np.ndarray
    labels_N: np.ndarray


class BoardLayout(NamedTuple):
    """Boxes of a board, row by row: how many digits each holds."""

    columns: int
    rows: int
    held: tuple[int, ...]


class Board(NamedTuple):
    """A picture `[H, W]` uint8, and the digits of every box in reading order: box by box, each from its upper left."""

    picture_HW: np.ndarray
    boxes: tuple[tuple[int, ...], ...]

    @property
    def digits(self) -> tuple[int, ...]:
        return tuple(digit for box in self.boxes for digit in box)


def split_of(number: int) -> Split:
    """The split of scikit-learn's digit `number`, 2 : 1 : 7 for test, dev and train.

    Blocks of ten, since the first digits of the collection come in the order 0 to 9.
    """
    held_out: dict[int, Split] = {0: "test", 5: "test", 7: "dev"}
    return held_out.get(number // 10 % 10, "train")


@functools.cache
def digits(split: Split) -> Digits:
    """The digits of a split."""
    from sklearn.datasets import load_digits  # here: the launchers' --help must not need it

    data = load_digits()
    chosen_N = np.array([split_of(number) == split for number in range(len(data.target))])
    return Digits((data.images[chosen_N] / 16).astype(np.float32), data.target[chosen_N])


def random_layout(rng: np.random.Generator) -> BoardLayout:
    """One of `HOLDINGS` on one of `GRIDS`, in random boxes."""
    columns, rows = GRIDS[rng.integers(len(GRIDS))]
    holding = HOLDINGS[rng.integers(len(HOLDINGS))]
    held = np.zeros(columns * rows, int)
    held[rng.permutation(columns * rows)[: len(holding)]] = rng.permutation(holding)
    return BoardLayout(columns, rows, tuple(held.tolist()))


def draw(layout: BoardLayout, split: Split, rng: np.random.Generator) -> Board:
    """A board of this layout with random digits of a split."""
    available, spread = digits(split), SPREAD if split == "train" else 1.0
    paper, ink = rng.uniform(0.75, 1.0), rng.uniform(0.0, 0.3)
    cover_HW = np.zeros((BOX * layout.rows, BOX * layout.columns), np.float32)
    boxes = []
    for box, held in enumerate(layout.held):
        top, left = BOX * (box // layout.columns), BOX * (box % layout.columns)
        chosen_K = rng.integers(len(available.labels_N), size=held)
        if held == 1:
            places, side = [(top, left)], BOX
        else:
            side = BOX // 2
            quarters = sorted(rng.permutation(len(_QUARTERS))[:held])
            places = [(top + side * _QUARTERS[q][0], left + side * _QUARTERS[q][1]) for q in quarters]
        for (y, x), chosen in zip(places, chosen_K, strict=True):
            cover_HW[y : y + side, x : x + side] = _paint(available.ink_NHW[chosen], side, spread, rng)
        boxes.append(tuple(available.labels_N[chosen_K].tolist()))
    value_HW = paper + (ink - paper) * cover_HW + rng.normal(scale=rng.uniform(0, 0.04), size=cover_HW.shape)
    return Board(np.rint(255 * np.clip(value_HW, 0, 1)).astype(np.uint8), tuple(boxes))


def _paint(ink_HW: np.ndarray, side: int, spread: float, rng: np.random.Generator) -> np.ndarray:
    """A digit `[8, 8]` in a square `[side, side]`: moved, stretched, slanted and turned, its strokes thick or thin.

    The corners of the square are places in the digit's field and around it, each drawn by itself.
    """
    field = len(ink_HW)
    corners = np.array([(0, 0), (0, field), (field, field), (field, 0)]) * 1.2 - 0.1 * field
    corners += spread * (rng.uniform(-0.6, 0.6, size=(4, 2)) + rng.uniform(-0.5, 0.5, size=2))
    image = Image.fromarray(ink_HW ** np.float32(1 + 0.3 * spread * rng.uniform(-1, 1)))
    warped = image.transform((side, side), Image.Transform.QUAD, tuple(corners.ravel()), Image.Resampling.BICUBIC)
    return np.clip(np.asarray(warped), 0, 1)
