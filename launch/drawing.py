"""What `launch.chat` draws of one question: flags, and files that appear once the answer is there."""

import sys

import PIL.Image
from absl import flags

from internvl_jax.data import Processor, load_image, parse_actions, parse_regions
from internvl_jax.errors import InputError
from internvl_jax.evaluation import draw_answer, draw_svg, find_svg, router_overlay
from internvl_jax.files import whole_file
from internvl_jax.inference import Thresholds
from internvl_jax.models import InternVL
from launch import checkpoint, paths

_ROUTER = flags.DEFINE_string("router_picture", None, "Flash: draw the router's decisions into this PNG file")
_DRAW = flags.DEFINE_string("draw", None, "PNG file: the boxes and clicks of the answer, drawn over the picture")
_SVG = flags.DEFINE_string("svg", None, "PNG file: the SVG of the answer, drawn (extra `svg`)")


def check(prompt: str | None, images: list[str]) -> None:
    """Raises InputError for what can't be drawn, before anything slow begins."""
    for flag, path in (("router_picture", _ROUTER.value), ("draw", _DRAW.value), ("svg", _SVG.value)):
        if path and prompt is None:
            raise InputError(f"--{flag} draws one question or its answer; give it with --prompt")
        if path:
            paths.check_folder(path, flag)
    if _ROUTER.value and checkpoint.model_config().flash is None:
        raise InputError("this model has no router, so there is nothing to draw; give a Flash model")
    if _DRAW.value and len(images) != 1:
        raise InputError("--draw needs one picture that boxes are drawn over; give it with --image")


def draw_router(model: InternVL, processor: Processor, images: list[str], thresholds: Thresholds) -> None:
    """Writes what a Flash model's router makes of the pictures, if a flag asks for it."""
    if _ROUTER.value:
        _save(router_overlay(model, processor, images, thresholds), _ROUTER.value)


def draw(answer: str, processor: Processor, images: list[str]) -> None:
    """Writes what the flags ask for; what the answer doesn't have is said on stderr."""
    if _DRAW.value:
        regions = parse_regions(answer)
        actions = [] if regions else parse_actions(answer)
        if regions or any(action.point is not None for action in actions):
            _save(draw_answer(load_image(images[0], processor.image_config), regions, actions), _DRAW.value)
        else:
            print("the answer has no box and no click, so nothing is drawn", file=sys.stderr)
    if _SVG.value:
        svg = find_svg(answer)
        if svg is None:
            print("the answer has no SVG, so nothing is drawn", file=sys.stderr)
        else:
            _save(draw_svg(svg), _SVG.value)


def _save(picture: PIL.Image.Image, path: str) -> None:
    with whole_file(path) as temporary:
        picture.save(temporary, "png")
