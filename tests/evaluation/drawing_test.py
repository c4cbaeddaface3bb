"""Boxes and clicks stand where they are said to stand."""

import numpy as np
from PIL import Image

from internvl_jax.data import parse_actions, parse_regions
from internvl_jax.evaluation import draw_answer

GREY = (120, 120, 120)


def coloured(picture):
    """(rows, columns) of pixels that were drawn."""
    return np.nonzero((np.asarray(picture) != GREY).any(-1))


def test_a_box_is_drawn_in_pixels_of_the_picture():
    picture = Image.new("RGB", (400, 300), GREY)
    drawn = draw_answer(picture, parse_regions("[[250, 500, 750, 900]]"))
    rows, columns = coloured(drawn)
    assert drawn.size == (400, 300)
    assert (columns.min(), rows.min(), columns.max(), rows.max()) == (100, 150, 299, 269)
    assert drawn.getpixel((200, 200)) == GREY and drawn.getpixel((100, 200)) == drawn.getpixel((299, 200)) != GREY


def test_names_have_colours_and_stay_within_the_picture():
    picture = Image.new("RGB", (400, 300), GREY)
    text = "cup[[0, 0, 300, 300], [400, 400, 600, 600]]\na name that is long[[900, 0, 1000, 400]]"
    drawn = draw_answer(picture, parse_regions(text))
    cup, second, other = (drawn.getpixel(point) for point in ((0, 80), (160, 150), (399, 100)))
    assert cup == second != other and GREY not in (cup, other)
    assert drawn.size == (400, 300) and (255, 255, 255) in {colour for _, colour in drawn.getcolors(1 << 20)}
    assert drawn.getpixel((340, 1)) == other  # the name begins left of its box, whose left side is at 360


def test_a_click_is_a_ring():
    drawn = draw_answer(Image.new("RGB", (400, 300), GREY), [], parse_actions("click(x=0.5, y=0.5)"))
    rows, columns = coloured(drawn)
    assert abs(columns.mean() - 200) < 1 and abs(rows.mean() - 150) < 1 and drawn.getpixel((200, 150)) != GREY
    same = draw_answer(Image.new("RGB", (400, 300), GREY), [], parse_actions("pyautogui.hotkey('a')"))
    assert len(coloured(same)[0]) == 0


def test_a_small_picture_is_enlarged():
    drawn = draw_answer(Image.new("RGB", (64, 40), GREY), parse_regions("[[0, 0, 500, 500]]"))
    rows, columns = coloured(drawn)
    assert drawn.size == (256, 160) and (columns.max(), rows.max()) == (127, 79)
    clicked = coloured(draw_answer(Image.new("RGB", (64, 40), GREY), [], parse_actions("click(x=0.5, y=0.5)")))
    assert abs(clicked[1].mean() - 128) < 1 and abs(clicked[0].mean() - 80) < 1
