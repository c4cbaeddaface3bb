"""How questions are put: flags of the launchers that ask them; `sampling_flags` has how answers are written."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

from absl import flags

from internvl_jax.data import DEFAULT_MAX_PIXELS, ImageConfig, Processor, images, tiling
from internvl_jax.errors import InputError
from internvl_jax.inference import MODEL_THRESHOLDS, SamplingParams, Thresholds
from internvl_jax.models import InternVL
from launch import checkpoint, own_adapter, together
from launch.sampling_flags import REASONING, THINKING

_ANSWERED_BY = ("thinking", "reasoning", "max_tiles", "dtype", "quantise", "cache", "adapter")  # flags
_MAX_TILES = flags.DEFINE_integer("max_tiles", None, "most tiles of a picture; default: the model's", 1, 4096)
_THRESHOLDS = {
    "relative": flags.DEFINE_float("relative_threshold", None, "Flash: share of tiles kept full; default: the model's"),
    "absolute": flags.DEFINE_float(
        "absolute_threshold", None, "Flash: compress a tile the router gives this probability; default: the model's"
    ),
}


def thresholds() -> Thresholds:
    """What tiles are compressed by; InputError for values that can't be, or a model without a router."""
    found = Thresholds(**{name: flag.value for name, flag in _THRESHOLDS.items()})
    if found != MODEL_THRESHOLDS and checkpoint.model_config().flash is None:
        raise InputError("this model has no router; leave out --relative_threshold and --absolute_threshold")
    return found


def check_pictures(paths: list[str]) -> None:
    """Raises InputError for a path that is no picture, before anything slow begins."""
    for path in paths:
        images.image_size(path, ImageConfig(448, 256, 1, 12, True, False, DEFAULT_MAX_PIXELS))


def known_by(sampling: SamplingParams, limits: Thresholds) -> dict[str, Any]:
    """What answers depend on besides their questions, as it is kept beside them."""
    asked = {name: flags.FLAGS[name].value for name in _ANSWERED_BY}
    return {
        "sampling": dataclasses.asdict(sampling),
        "thresholds": dataclasses.asdict(limits),
        "checkpoint": str(checkpoint.directory()),
        **{name: None if value == "auto" else value for name, value in asked.items()},  # None: the usual, as not named
    }


@contextlib.contextmanager
def opened() -> Iterator[tuple[InternVL, Processor]]:
    """`together.opened`, with the processor as flags want it."""
    with together.opened(own=own_adapter.given()) as (model, processor):
        yield model, adjusted(processor)


def adjusted(processor: Processor) -> Processor:
    """The processor as flags want it."""
    processor = processor.with_reasoning(REASONING.value) if REASONING.value else processor
    return limited(processor.with_thinking() if THINKING.value else processor)


def limited(processor: Processor) -> Processor:
    """The processor with as many tiles as --max_tiles says."""
    if _MAX_TILES.value is None:
        return processor
    return dataclasses.replace(processor, image_config=tiling.limit_tiles(processor.image_config, _MAX_TILES.value))
