"""Boxes and clicks in answers: read from the forms that models write them in, in pixels and back.

1. `parse_regions` finds boxes: `<ref>name</ref><box>[[x1, y1, x2, y2], ...]</box>`, the same without its tags, which
   decoding drops, bare brackets, and JSON (`{"bbox_2d": [...], "label": ...}`). InternVL writes thousandths of the
   original picture, whatever its tiles; others write fractions or pixels, and so large or small numbers are told apart.
2. `parse_actions` finds clicks and other calls of a GUI agent (`pyautogui.click(x=0.5, y=0.25)`, `x=0.5, y=0.25`), and
   points or, failing those, the middles of boxes.
3. `iou` and `is_inside` compare them with what is true; `write_box` writes them as the released data do.

Sources: released `docs/chat_data_format`; VLMEvalKit's RefCOCO and ScreenSpot at e8e78f05 for the scales.
"""

import math
import re
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

Corners = tuple[float, float, float, float]  # x1, y1, x2, y2
Scale = Literal["fractions", "thousandths", "pixels"]

_MOST = 1000  # boxes or calls of an answer that are looked at
_NUMBER = r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?"
_GAP = r"(?:\s*,\s*|\s+)"
_FOUR = re.compile(rf"[\[(]\s*({_NUMBER}){_GAP}({_NUMBER}){_GAP}({_NUMBER}){_GAP}({_NUMBER})\s*[\])]")
_TWO = re.compile(rf"\[\s*({_NUMBER}){_GAP}({_NUMBER})\s*\]")
_LABEL = re.compile(r"\"(?:label|ref|name|object)\"\s*:\s*\"([^\"\\]{0,200})\"")
_REF = re.compile(r"<ref>\s*((?:(?!</?ref>).){0,500}?)\s*</ref>[\s:]*(?:<box>)?[\s\[(]*\Z", re.DOTALL)
_BEHIND = 600  # characters before a box in which its name is looked for
_CALL = re.compile(r"\b([a-zA-Z]+)\(((?:'[^'\n]*'|\"[^\"\n]*\"|[^()'\"\n])*)\)")
_KEYWORD = re.compile(rf"\b([xy])\s*=\s*({_NUMBER})")
_TEXT = re.compile(r"'([^'\n]*)'|\"([^\"\n]*)\"")
# Functions of pyautogui that agents are given; others are no actions.
_ACTIONS = frozenset(
    {"click", "doubleClick", "tripleClick", "rightClick", "middleClick", "moveTo", "dragTo", "scroll", "hscroll"}
    | {"write", "typewrite", "press", "hotkey", "keyDown", "keyUp"}
)


class Region(NamedTuple):
    """A box as it was written.

    Attributes:
      label: what it is of; "" where nothing says.
      corners: in order, left of right and above below.
      scale: what they are counted in.
    """

    label: str
    corners: Corners
    scale: Scale

    def pixels(self, width: int, height: int) -> Corners:
        """The box in pixels of a picture of this size, cut at its edges."""
        return in_pixels(self.corners, self.scale, width, height)

    @property
    def middle(self) -> tuple[float, float]:
        x1, y1, x2, y2 = self.corners
        return (x1 + x2) / 2, (y1 + y2) / 2


class Action(NamedTuple):
    """What a GUI agent wants done.

    Attributes:
      name: as pyautogui calls it.
      point: where; None for keys and the like.
      scale: what the point is counted in.
      texts: what is typed, or keys.
    """

    name: str
    point: tuple[float, float] | None
    scale: Scale
    texts: tuple[str, ...] = ()

    def pixel(self, width: int, height: int) -> tuple[float, float] | None:
        """The point in pixels of a picture of this size, within it."""
        if self.point is None:
            return None
        x, y = self.point
        return in_pixels((x, y, x, y), self.scale, width, height)[:2]


def parse_regions(text: str) -> list[Region]:
    """All boxes of an answer, but for those with numbers beyond any float. All are on the scale of its largest number:
    fractions up to 1.5, thousandths to 1000.
    """
    found: list[tuple[str, Corners]] = []
    before = 0  # where the last box ended
    for match in _FOUR.finditer(text):
        x1, y1, x2, y2 = corners = [float(number) for number in match.groups()]
        if not all(map(math.isfinite, corners)):
            continue
        label = found[-1][0] if found and _goes_on(text[before : match.start()]) else _label(text, match, before)
        found.append((label, (min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2))))
        before = match.end()
        if len(found) == _MOST:
            break
    scale = _scale(number for _, corners in found for number in corners)
    return [Region(label, corners, scale) for label, corners in found]


def parse_actions(text: str) -> list[Action]:
    """All actions of an answer; where it calls none, a click on each point `[[x, y]]`, or else in the middle of each
    box. Numbers of calls are fractions up to 1, else pixels; points are thousandths like boxes.
    """
    found = [_action(match) for match in _CALL.finditer(text) if match[1] in _ACTIONS]
    if not found:
        numbers = dict(_KEYWORD.findall(text))
        found = [_clicked((float(numbers["x"]), float(numbers["y"])))] if numbers.keys() >= {"x", "y"} else []
    if not found:
        points = [(float(x), float(y)) for x, y in _TWO.findall(text)]
        scale = _scale(number for point in points for number in point)
        found = [Action("click", point, scale) for point in points]
    return (found or [Action("click", region.middle, region.scale) for region in parse_regions(text)])[:_MOST]


def in_pixels(corners: Corners, scale: Scale, width: int, height: int) -> Corners:
    """Corners in pixels, cut at the edges of a picture."""
    unit = {"fractions": 1.0, "thousandths": 1000.0, "pixels": None}[scale]
    size = (width, height, width, height)
    scaled = corners if unit is None else [c * side / unit for c, side in zip(corners, size, strict=True)]
    x1, y1, x2, y2 = (min(max(c, 0.0), float(side)) for c, side in zip(scaled, size, strict=True))
    return x1, y1, x2, y2


def thousandths(corners: Corners, width: int, height: int) -> tuple[int, int, int, int]:
    """A box in pixels as the released data count it: whole thousandths of the picture."""
    x1, y1, x2, y2 = corners
    x, y = (
        (lambda c: min(max(round(1000 * c / width), 0), 1000)),
        (lambda c: min(max(round(1000 * c / height), 0), 1000)),
    )
    return x(x1), y(y1), x(x2), y(y2)


def write_box(label: str, boxes: Sequence[Sequence[int]]) -> str:
    """A name with its boxes, in thousandths, as the released data have them."""
    written = ", ".join(f"[{', '.join(str(number) for number in box)}]" for box in boxes)
    return f"<ref>{label}</ref><box>[{written}]</box>"


def iou(one: Corners, other: Corners) -> float:
    """What two boxes share, of what they cover together; 0 where that is nothing."""
    wide = min(one[2], other[2]) - max(one[0], other[0])
    high = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(wide, 0.0) * max(high, 0.0)
    area = lambda box: (box[2] - box[0]) * (box[3] - box[1])
    whole = area(one) + area(other) - shared
    return shared / whole if whole > 0 else 0.0


def is_inside(point: tuple[float, float], box: Corners) -> bool:
    """Whether a point lies in a box, its edge included."""
    return box[0] <= point[0] <= box[2] and box[1] <= point[1] <= box[3]


def _goes_on(between: str) -> bool:
    """Whether nothing but a comma stands between two boxes of a list."""
    return not between.strip(", \n\t")


def _label(text: str, match: re.Match, before: int) -> str:
    """The name of a box: in tags before it or the JSON object around it, or what touches its brackets on their line."""
    start = max(before, match.start() - _BEHIND)
    lead = text[start : match.start()]
    if tagged := _REF.search(lead):
        return tagged[1]
    opened = lead.rfind("{")
    if opened >= 0 and "}" not in lead[opened:]:
        close = text.find("}", match.end(), match.end() + _BEHIND)
        named = _LABEL.search(text[start + opened : close if close >= 0 else match.end()])
        return named[1] if named else ""
    bare = re.search(r"([^\n\[\](){}<>,;:]{1,200})(?:<box>)?\[*\Z", lead)
    return bare[1].strip() if bare and not bare[1][-1].isspace() else ""


def _action(match: re.Match) -> Action:
    name, given = match[1], match[2]
    texts = tuple(single or double for single, double in _TEXT.findall(given))
    keywords = dict(_KEYWORD.findall(given))
    rest = _TEXT.sub("", given)
    placed = [part.strip() for part in rest.split(",") if part.strip() and "=" not in part]
    numbers = [float(part) for part in placed if re.fullmatch(_NUMBER, part)]
    if keywords.keys() >= {"x", "y"}:
        return _clicked((float(keywords["x"]), float(keywords["y"])), name, texts)
    if len(numbers) >= 2 and "scroll" not in name:
        return _clicked((numbers[0], numbers[1]), name, texts)
    return Action(name, None, "pixels", texts or tuple(placed))


def _clicked(point: tuple[float, float], name: str = "click", texts: tuple[str, ...] = ()) -> Action:
    return Action(name, point, "fractions" if max(point) <= 1 else "pixels", texts)


def _scale(numbers: Iterable[float]) -> Scale:
    most = max(numbers, default=0.0)
    return "fractions" if most <= 1.5 else "thousandths" if most <= 1000 else "pixels"
