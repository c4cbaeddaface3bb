"""Boxes and clicks of an answer, drawn over the picture that it is about."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from internvl_jax.data import Action, Region

# One for each name, in the order in which names come; all readable with white on them.
_COLOURS = ((214, 69, 38), (26, 108, 187), (26, 137, 84), (133, 68, 166), (176, 106, 0), (0, 128, 138), (186, 36, 109))
_SHORTEST = 256  # pixels of the longer side; smaller pictures are enlarged, so that names can be read


def draw_answer(picture: Image.Image, regions: Sequence[Region], actions: Sequence[Action] = ()) -> Image.Image:
    """The picture with boxes, their names, and a ring with a dot for every click.

    Args:
      picture: RGB, the original: numbers count its pixels, whatever tiles were made of it.
      regions, actions: as `parse_regions` and `parse_actions` find them.
    """
    width, height = picture.size
    enlarged = max(1, -(-_SHORTEST // max(width, height)))
    board = picture.resize((width * enlarged, height * enlarged), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(board)
    line = max(2, max(board.size) // 250)
    font = ImageFont.load_default(max(12, max(board.size) // 40))
    colours: dict[str, tuple[int, int, int]] = {}
    for region in regions:
        colour = colours.setdefault(region.label, _COLOURS[len(colours) % len(_COLOURS)])
        x1, y1, x2, y2 = (corner * enlarged for corner in region.pixels(width, height))
        draw.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=colour, width=line)
        if region.label:
            _write(draw, region.label, (x1, y1, board.width), colour, font)
    for number, action in enumerate(actions):
        point = action.pixel(width, height)
        if point is not None:
            colour = _COLOURS[number % len(_COLOURS)]
            _ring(draw, (point[0] * enlarged, point[1] * enlarged), 4 * line, colour, line)
    return board


def _write(
    draw: ImageDraw.ImageDraw,
    text: str,
    place: tuple[float, float, int],
    colour: tuple[int, int, int],
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    """A name on its colour, above its box where there is room, else within.

    place: the corner of the box, and the width of the picture.
    """
    x1, y1, width = place
    left, top, right, bottom = draw.textbbox((0, 0), text[:60], font=font)
    wide, high = right - left + 8, bottom - top + 6
    x = max(0.0, min(x1, width - wide))
    y = y1 - high if y1 >= high else y1
    draw.rectangle((x, y, x + wide, y + high), fill=colour)
    draw.text((x + 4 - left, y + 3 - top), text[:60], fill="white", font=font)


def _ring(
    draw: ImageDraw.ImageDraw, middle: tuple[float, float], radius: int, colour: tuple[int, int, int], line: int
) -> None:
    x, y = middle
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline="white", width=2 * line + 2)
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=colour, width=line + 1)
    draw.ellipse((x - line, y - line, x + line, y + line), fill=colour)
