"""easy-VQA: one coloured shape on a light ground, and questions about its shape and colour.

1. `questions` and `image_paths` read the two splits from the installed package (Victor Zhou, MIT licence).
2. `facts` works out what the questions and answers about an image say of its shape and colour; nothing else is known.
3. `repaint` moves, mirrors and recolours a picture. Colours are exchanged by a permutation, and the same permutation
   applied to every colour word of a question and its answer keeps them true.
"""

import json
import pathlib
import re
from collections.abc import Iterable
from typing import Literal, NamedTuple

import numpy as np

Split = Literal["train", "test"]

# As drawn in the pictures.
COLOURS = {
    "black": (0, 0, 0),
    "gray": (128, 128, 128),
    "red": (255, 0, 0),
    "blue": (0, 0, 255),
    "green": (0, 255, 0),
    "yellow": (255, 255, 0),
    "teal": (0, 128, 128),
    "brown": (165, 42, 42),
}
SHAPES = ("circle", "rectangle", "triangle")
KINDS = ("what shape", "what color", "yes/no shape", "yes/no color")

_NAMES = (*COLOURS, *SHAPES)
_COLOUR = re.compile(rf"\b({'|'.join(COLOURS)})\b")


class EasyQuestion(NamedTuple):
    """A question about the image of this number, and its answer."""

    image: int
    text: str
    answer: str


class Facts(NamedTuple):
    """What is known of an image; None where its questions leave it open."""

    colour: str | None
    shape: str | None


class Repainted(NamedTuple):
    """A picture `[H, W, 3]` uint8, and which colour word now stands for which."""

    picture_HWC: np.ndarray
    renamed: dict[str, str]


def questions(split: Split) -> list[EasyQuestion]:
    """All questions of a split, in the package's order."""
    entries = json.loads((_folder(split) / "questions.json").read_text())
    return [EasyQuestion(image, text, answer) for text, answer, image in entries]


def image_paths(split: Split) -> dict[int, pathlib.Path]:
    """The picture files of a split by image number, in rising order."""
    paths = (_folder(split) / "images").glob("*.png")
    return dict(sorted((int(path.stem), path) for path in paths))


def _folder(split: Split) -> pathlib.Path:
    import easy_vqa  # here: the launchers' --help must not need it

    return pathlib.Path(easy_vqa.__file__).parent / "data" / split


def kind(question: EasyQuestion) -> str:
    """One of `KINDS`."""
    if question.answer in ("yes", "no"):
        return "yes/no color" if _COLOUR.search(question.text) else "yes/no shape"
    return "what color" if question.answer in COLOURS else "what shape"


def claim(question: EasyQuestion) -> bool | None:
    """Whether what a yes/no question names is in the picture; None for the other questions."""
    if question.answer not in ("yes", "no"):
        return None
    negated = not {"no", "not"}.isdisjoint(re.findall(r"\w+", question.text))
    return (question.answer == "yes") != negated


def facts(about_one_image: Iterable[EasyQuestion]) -> Facts:
    """What all questions about one image, with their answers, say of it together.

    "what is the blue shape? rectangle" says both; "is there not a red shape? no" says red; several "is there a circle?
    no" can leave one shape over.
    """
    left = set(_NAMES)
    for question in about_one_image:
        words = re.findall(r"\w+", question.text)
        named = {word for word in words if word in _NAMES}
        if claim(question) is False:
            left -= named
            continue
        for name in named | ({question.answer} & set(_NAMES)):
            left -= set(COLOURS if name in COLOURS else SHAPES) - {name}
    colours, shapes = left & COLOURS.keys(), left & set(SHAPES)
    return Facts(*(next(iter(names)) if len(names) == 1 else None for names in (colours, shapes)))


def caption(known: Facts) -> str:
    """'a red circle'."""
    return f"a {known.colour} {known.shape}"


def rename(text: str, renamed: dict[str, str]) -> str:
    """The text with every colour word exchanged."""
    return _COLOUR.sub(lambda match: renamed[match[0]], text)


def repaint(picture_HWC: np.ndarray, rng: np.random.Generator) -> Repainted:
    """The picture with its shape moved, mirrored half of the time, and painted in another of the colours.

    A shape that the border cuts off stays at its border. Triangles stand upright in all pictures, so nothing is turned.
    """
    ground = picture_HWC[0, 0].astype(np.float64)
    colour = main_colour(picture_HWC)
    across = np.array(COLOURS[colour]) - ground
    # How much of each pixel the shape covers: its edges are antialiased.
    cover_HW = np.clip((picture_HWC - ground) @ across / (across @ across), 0, 1)
    for axis in (0, 1):
        covered = np.flatnonzero(cover_HW.max(axis=1 - axis) > 0.02)
        room = (-covered[0], picture_HWC.shape[axis] - 1 - covered[-1])
        if 0 not in room:
            cover_HW = np.roll(cover_HW, rng.integers(*room, endpoint=True), axis)
    if rng.random() < 0.5:
        cover_HW = cover_HW[:, ::-1]
    renamed = dict(zip(COLOURS, map(str, rng.permutation(list(COLOURS)))))
    painted = ground + cover_HW[:, :, None] * (np.array(COLOURS[renamed[colour]]) - ground)
    return Repainted(np.rint(painted).astype(np.uint8), renamed)


def main_colour(picture_HWC: np.ndarray) -> str:
    """The name of the colour that covers most of the picture, the ground aside."""
    return max(COLOURS, key=lambda name: np.count_nonzero(is_colour(picture_HWC, name)))


def is_colour(picture_HWC: np.ndarray, name: str) -> np.ndarray:
    """bool `[H, W]`: pixels of exactly this colour; those at the edges of a shape are mixed with the ground."""
    red, green, blue = COLOURS[name]
    return (picture_HWC[:, :, 0] == red) & (picture_HWC[:, :, 1] == green) & (picture_HWC[:, :, 2] == blue)
