"""Boards: digits of one split alone, a function of their seed, and tiles that differ in what they hold."""

import collections

import numpy as np
from PIL import Image

from cascade import boards, training_data
from cascade.boards import BoardLayout
from internvl_jax.data.media.images import tile_image
from internvl_jax.data.media.tiling import ImageConfig


def test_splits_are_disjoint_and_whole():
    """Every digit of the collection is in one split, and no picture of a digit is in two."""
    seen = collections.Counter()
    for split, count in (("train", 1257), ("dev", 180), ("test", 360)):
        digits = boards.digits(split)
        assert len(digits.ink_NHW) == len(digits.labels_N) == count
        assert np.bincount(digits.labels_N).min() > 0.6 * count / boards.DIGITS  # every digit is well represented
        seen.update({ink_HW.tobytes() for ink_HW in digits.ink_NHW})
    assert sum(seen.values()) == len(seen) == 1797


def test_same_seed_same_board():
    one, same, other = (
        boards.draw(BoardLayout(3, 2, (4, 0, 1, 3, 0, 1)), "train", np.random.default_rng(seed)) for seed in (5, 5, 6)
    )
    assert one.boxes == same.boxes and np.array_equal(one.picture_HW, same.picture_HW)
    assert one.boxes != other.boxes


def test_boards_show_digits_of_their_split_alone(monkeypatch):
    asked, digits = [], boards.digits
    monkeypatch.setattr(boards, "digits", lambda split: asked.append(split) or digits(split))
    for name, split in (("boxes", "train"), ("chains", "train"), ("rl", "train"), ("dev", "dev"), ("test", "test")):
        training_data.make(name, 0, seed=0)
        assert set(asked) == {split}
        asked.clear()


def test_a_board_is_cut_into_its_boxes():
    """One tile a box, in the order of `boxes`: blank, easy and crowded tiles show it by their ink."""
    held = (0, 1, 4, 0, 3, 0)
    config = ImageConfig(boards.BOX, 4, 1, 6, thumbnail=False, apply_exif=False, max_pixels=96 * 64)
    for grid in boards.GRIDS:
        board = boards.draw(BoardLayout(*grid, held), "train", np.random.default_rng(2))
        tiles_GHWC = tile_image(Image.fromarray(board.picture_HW).convert("RGB"), config)
        assert [len(box) for box in board.boxes] == list(held)
        assert board.digits == board.boxes[1] + board.boxes[2] + board.boxes[4]
        ink_G = np.ptp(tiles_GHWC.astype(float), axis=(1, 2, 3)) > 120
        assert ink_G.tolist() == [count > 0 for count in held]


def test_small_digits_are_in_reading_order(monkeypatch):
    """Digits painted the darker the larger they are: the picture says which stands where."""
    ink_NHW = np.ones((10, 8, 8), np.float32) * np.linspace(0.3, 1, 10, dtype=np.float32)[:, None, None]
    monkeypatch.setattr(boards, "digits", lambda split: boards.Digits(ink_NHW, np.arange(10)))
    monkeypatch.setattr(boards, "_paint", lambda ink_HW, side, *_: np.full((side, side), ink_HW.mean()))
    orders = set()
    for seed in range(20):
        board = boards.draw(BoardLayout(1, 1, (4,)), "train", np.random.default_rng(seed))
        half, (first, *_) = boards.BOX // 2, board.boxes
        centres = [board.picture_HW[y + 6 : y + 10, x + 6 : x + 10].mean() for y in (0, half) for x in (0, half)]
        if len(set(first)) == 4:
            assert np.argsort(centres).tolist() == np.argsort(first)[::-1].tolist()
            orders.add(first)
    assert len(orders) > 3


def test_layouts_leave_most_boxes_easy():
    rng = np.random.default_rng(0)
    layouts = [boards.random_layout(rng) for _ in range(500)]
    assert {(layout.columns, layout.rows) for layout in layouts} == set(boards.GRIDS)
    held = np.array([layout.held for layout in layouts])
    assert {tuple(sorted(row[row > 0])) for row in held} == {tuple(sorted(holding)) for holding in boards.HOLDINGS}
    assert 0.7 < np.mean(held <= 1) < 0.9
    assert (held > 0).any(axis=0).all()
