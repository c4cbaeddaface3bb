"""SVG in answers: found, made harmless, drawn, and compared with a picture.

1. `find_svg` takes the last code block that is marked as SVG, else the last `<svg>...</svg>`, as VLMEvalKit's SArena.
2. `harmless` leaves out what leads outside or runs: scripts, foreign objects, references to anything but the drawing
   itself or a bitmap within it. resvg would read a local file that a picture names.
3. `draw_svg` has resvg (extra `svg`) draw it in a process with limits of time and memory.
4. `psnr` and `ssim` compare pictures. DINO, LPIPS, FID and CLIP scores need weights of other networks: not here.
"""

import importlib.util
import io
import math
import pathlib
import re
import subprocess
import sys
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from internvl_jax.errors import InputError
from internvl_jax.validation import first_line

MOST_CHARACTERS = 1 << 20
SECONDS = 10  # as long as VLMEvalKit lets a drawing take
_MEMORY = 1 << 30  # bytes
_MOST_SIDE = 4096  # pixels
_DEEPEST = 200  # elements within one another
_PROCESS = pathlib.Path(__file__).with_name("svg_process.py")
_NOT_AN_SVG = 3  # its exit code

_BLOCK = re.compile(r"```(?:svg|xml|html)?[ \t]*\n(.*?)```", re.DOTALL | re.IGNORECASE)
_MARKED = re.compile(r"```svg[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)
_SVG_TAG = re.compile(r"</svg\s*>|<svg(?=[\s/>]|\Z)[^<>]*>?")
_DOCTYPE = re.compile(r"<!DOCTYPE[^\[>]*>", re.IGNORECASE)
_OUTSIDE = re.compile(r"@import|url\(\s*+['\"]?+\s*+(?!#)", re.IGNORECASE)
_BITMAP = re.compile(r"data:image/(?:png|jpe?g|gif|webp);base64,", re.IGNORECASE)
_DROPPED = frozenset({"script", "foreignobject", "iframe", "audio", "video", "embed", "object"})

_WINDOW, _SIGMA = 11, 1.5  # of SSIM
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def find_svg(text: str) -> str | None:
    """The SVG of an answer; None where there is none. One that was cut off is given as far as it goes."""
    for found in (_MARKED.findall(text)[-1:], [block for block in _BLOCK.findall(text) if "<svg" in block][-1:]):
        if found and "<svg" in found[0]:
            return found[0].strip()
    begun, last = list[int](), (0, 0)  # where elements begin that are open, and the last whole one that is in no other
    for tag in _SVG_TAG.finditer(text):
        if not tag[0].startswith("</"):
            begun.append(tag.start())
        if begun and (tag[0].startswith("</") or tag[0].endswith("/>")):
            last = begun.pop(), tag.end()
    cut_off = [start for start in begun if start >= last[1]]  # tags before may only be spoken of
    return text[cut_off[0] :] if cut_off else text[slice(*last)] or None


def harmless(svg: str) -> tuple[str, list[str]]:
    """The drawing without what leads outside, and what was left out.

    Raises:
      InputError: it is too long, no well-formed XML, no SVG, or brings entities of its own.
    """
    if len(svg) > MOST_CHARACTERS:
        raise InputError(
            f"the SVG has {len(svg):,} characters, more than the limit of {MOST_CHARACTERS:,}; simplify it."
        )
    svg = _DOCTYPE.sub("", svg)
    if re.search(r"<!(?:DOCTYPE|ENTITY)", svg, re.IGNORECASE):
        raise InputError("the SVG defines entities, which nothing here needs; write them out.")
    try:
        root = ElementTree.fromstring(svg)
    except (ElementTree.ParseError, ValueError) as error:
        raise InputError(f"the SVG is no well-formed XML ({first_line(error)}); close every element.") from None
    if _name(root.tag) != "svg":
        raise InputError(f"the SVG begins with <{_name(root.tag)}>; it must be an <svg>.")
    left: list[str] = []
    level = [root]
    for _ in range(_DEEPEST):
        level = [child for element in level for child in _cleaned(element, left)]
        if not level:
            return ElementTree.tostring(root, encoding="unicode"), left
    raise InputError(f"the SVG has elements within more than {_DEEPEST} others; flatten it.")


def draw_svg(svg: str, side: int = 512, seconds: int = SECONDS) -> Image.Image:
    """The drawing as an RGB picture on white, in its own proportions; its text in DejaVu's fonts.

    Args:
      svg: of anybody: see `harmless`.
      side: pixels of its longer side.
      seconds: how long drawing may take.

    Raises:
      InputError: it can't be drawn, or not within these limits; or resvg is missing.
    """
    if not 1 <= side <= _MOST_SIDE:
        raise InputError(f"an SVG would be {side} pixels wide; draw it from 1 to {_MOST_SIDE:,}.")
    if importlib.util.find_spec("resvg_py") is None:
        raise InputError("drawing an SVG needs resvg; pip install 'internvl_jax[svg]'.")
    text, _ = harmless(svg)
    fonts = pathlib.Path(importlib.util.find_spec("matplotlib").origin).parent / "mpl-data" / "fonts" / "ttf"
    command = [sys.executable, "-P", str(_PROCESS), str(fonts), str(side), str(seconds), str(_MEMORY)]
    try:
        done = subprocess.run(command, input=text.encode(), capture_output=True, timeout=seconds + 5, check=False)
    except subprocess.TimeoutExpired:
        raise InputError(f"the SVG took longer than {seconds} s to draw, the limit; simplify it.") from None
    if done.returncode == _NOT_AN_SVG:
        raise InputError(f"the SVG can't be drawn ({_said(done.stderr)}); correct it.")
    if done.returncode:
        raise InputError(f"drawing the SVG took more than {seconds} s or {_MEMORY:,} bytes; simplify it.")
    picture = Image.open(io.BytesIO(done.stdout), formats=("PNG",))
    if max(picture.size) > side:
        raise InputError(f"the SVG was drawn {picture.width} x {picture.height} pixels large instead of {side}.")
    return picture.convert("RGB")


def psnr(one_HWC: np.ndarray, other_HWC: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two uint8 pictures in decibels; infinite for equal ones."""
    _check_alike(one_HWC, other_HWC)
    error = np.mean((one_HWC.astype(np.float64) - other_HWC) ** 2)
    return math.inf if error == 0 else float(10 * np.log10(255**2 / error))


def ssim(one_HWC: np.ndarray, other_HWC: np.ndarray) -> float:
    """Structural similarity of two uint8 pictures, -1 to 1: mean over channels and over all whole windows.

    Source: Wang et al. 2004, with its Gaussian window of 11 pixels and its constants.
    """
    _check_alike(one_HWC, other_HWC)
    if min(one_HWC.shape[:2]) < _WINDOW:
        raise InputError(f"pictures of {one_HWC.shape[1]} x {one_HWC.shape[0]} pixels have no SSIM; draw them larger.")
    x_HWC, y_HWC = one_HWC.astype(np.float64), other_HWC.astype(np.float64)
    mean_x, mean_y = _blurred(x_HWC), _blurred(y_HWC)
    var_x, var_y = _blurred(x_HWC**2) - mean_x**2, _blurred(y_HWC**2) - mean_y**2
    shared = _blurred(x_HWC * y_HWC) - mean_x * mean_y
    similar = (2 * mean_x * mean_y + _C1) * (2 * shared + _C2)
    return float(np.mean(similar / ((mean_x**2 + mean_y**2 + _C1) * (var_x + var_y + _C2))))


def _cleaned(element: ElementTree.Element, left: list[str]) -> list[ElementTree.Element]:
    """Takes out what an element must not have; returns its children that stay."""
    for key, value in list(element.attrib.items()):
        name = _name(key)
        refers = name in ("href", "src") and not (value.strip().startswith("#") or _BITMAP.match(value.strip()))
        if refers or name.startswith("on") or _OUTSIDE.search(value):
            del element.attrib[key]
            left.append(f"{name}={value[:40]!r} of <{_name(element.tag)}>")
    for child in list(element):
        name = _name(child.tag)
        if name in _DROPPED or (name == "style" and _OUTSIDE.search("".join(child.itertext()))):
            element.remove(child)
            left.append(f"<{name}>")
    return list(element)


def _name(tag: str) -> str:
    """Without its namespace."""
    return str(tag).rpartition("}")[2].lower()


def _said(stderr: bytes) -> str:
    lines = stderr.decode(errors="replace").strip().split("\n")
    return lines[-1][:200]


def _check_alike(one_HWC: np.ndarray, other_HWC: np.ndarray) -> None:
    if (
        one_HWC.shape != other_HWC.shape
        or one_HWC.ndim != 3
        or {one_HWC.dtype, other_HWC.dtype} != {np.dtype(np.uint8)}
    ):
        raise InputError(
            f"pictures of {one_HWC.shape} {one_HWC.dtype} and {other_HWC.shape} {other_HWC.dtype} can't be compared; "
            "give two of the same size, 8 bits a channel."
        )


def _blurred(pixels_HWC: np.ndarray) -> np.ndarray:
    """Gaussian means of all whole windows."""
    offsets = np.arange(_WINDOW) - _WINDOW // 2
    weights = np.exp(-(offsets**2) / (2 * _SIGMA**2))
    weights /= weights.sum()
    for axis in (0, 1):
        windows = np.lib.stride_tricks.sliding_window_view(pixels_HWC, _WINDOW, axis)
        pixels_HWC = windows @ weights
    return pixels_HWC
