"""Boxes and clicks in answers, and how well they fit.

Source of the rules: VLMEvalKit at e8e78f05 (refcoco.py, GUI/screenspot.py, vlm/internvl/utils.py), and InternVL's own
eval/refcoco at 2410d1d.
"""

import math
import re
from collections.abc import Sequence

Box = tuple[float, float, float, float]  # left, top, right, bottom

HIT = 0.5  # IoU from which a box is found
_NUMBER = r"[-+]?(?:\d+\.\d*|\.\d+|\d+)(?:[eE][-+]?\d+)?"
_BRACKETED = re.compile(rf"\[\s*({_NUMBER})[\s,]+({_NUMBER})[\s,]+({_NUMBER})[\s,]+({_NUMBER})\s*\]")
_ANY_NUMBER = re.compile(_NUMBER)
_INTERNVL_BOX = re.compile(r"\[\[(\d+), (\d+), (\d+), (\d+)\]\]")
_CLICK = re.compile(r"x=([\d.]+), y=([\d.]+)")
_OWN_BOX = re.compile(r"\[(?!\[)([^,\n]*),([^,\n]*),([^,\n]*),([^\]\n]*)\]")
_PER_MILLE = 1000


def parse_box(text: str) -> Box | None:
    """The first four numbers in brackets, or else the first four numbers, whatever stands between them."""
    found = _BRACKETED.search(text)
    numbers = found.groups() if found else _ANY_NUMBER.findall(text)[:4]
    if len(numbers) < 4:
        return None
    x1, y1, x2, y2 = map(float, numbers)
    return x1, y1, x2, y2


def in_pixels(box: Box, width: float, height: float) -> Box:
    """A box of fractions (none above 1.5), of thousandths (none above 1000) or of pixels, in pixels of the picture, its
    corners in order.
    """
    largest = max(map(abs, box))
    scale = (width, height) if largest <= 1.5 else (width / _PER_MILLE, height / _PER_MILLE)
    if largest > _PER_MILLE:
        scale = (1.0, 1.0)
    x1, x2 = (min(max(x * scale[0], 0.0), width) for x in box[::2])
    y1, y2 = (min(max(y * scale[1], 0.0), height) for y in box[1::2])
    return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)


def iou(one: Box, other: Box) -> float:
    """Intersection over union; 0 where there is no area."""
    width = max(0.0, min(one[2], other[2]) - max(one[0], other[0]))
    height = max(0.0, min(one[3], other[3]) - max(one[1], other[1]))
    areas = [max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1]) for box in (one, other)]
    union = sum(areas) - width * height
    return width * height / union if union > 0 else 0.0


def click_of_box(text: str) -> str:
    """The centre of the first `[[x1, y1, x2, y2]]` of thousandths as `x=..., y=...` of fractions; any other answer as
    it is. Source: the InternVL wrapper, for GUI data sets.
    """
    found = _INTERNVL_BOX.search(text)
    if found is None:
        return text
    x1, y1, x2, y2 = map(int, found.groups())
    return f"x={(x1 + x2) / 2 / _PER_MILLE}, y={(y1 + y2) / 2 / _PER_MILLE}"


def parse_click(text: str) -> tuple[float, float] | None:
    """The point of `x=..., y=...`, (0, 0) where there is none; None where its numbers are none ('0.4.')."""
    found = _CLICK.search(text)
    if found is None:
        return 0.0, 0.0
    try:
        return float(found.group(1)), float(found.group(2))
    except ValueError:
        return None


def is_inside(click: tuple[float, float], box: Sequence[float], width: int, height: int) -> bool:
    """Whether a click, in fractions or (above 1) in pixels, is within a box `[x, y, width, height]` of pixels, edges
    included.
    """
    x, y = click if max(click) <= 1 else (click[0] / width, click[1] / height)
    left, top, right, bottom = box[0], box[1], box[0] + box[2] - 1, box[1] + box[3] - 1
    # A side at -1 is taken for 0.
    left, top, right, bottom = (0 if side == -1 else side for side in (left, top, right, bottom))
    return left / width <= x <= right / width and top / height <= y <= bottom / height


def own_box(text: str, width: float, height: float) -> Box:
    """InternVL's own rule: four parts between commas in brackets, thousandths if they sum to 4 or more, else fractions;
    corners stay as they are, and what is no box is (0, 0, 0, 0). In pixels.
    """
    found = _OWN_BOX.search(text)
    try:
        parts = [float(part) for part in found.groups()] if found else [0.0] * 4
    except ValueError:
        parts = [0.0] * 4
    scale = _PER_MILLE if sum(parts) >= 4 else 1
    x1, y1, x2, y2 = (part / scale for part in parts)
    return x1 * width, y1 * height, x2 * width, y2 * height


def own_iou(one: Box, other: Box) -> float:
    """As InternVL's own rule takes it: corners in the wrong order make an area of their own."""
    width = max(0.0, min(one[2], other[2]) - max(one[0], other[0]))
    height = max(0.0, min(one[3], other[3]) - max(one[1], other[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    union = sum(areas) - width * height
    return width * height / union if union else math.nan
