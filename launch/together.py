"""How launchers start whose model may lie in several processes."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from checkpoint_convert import Adapter, attach
from internvl_jax.data import Processor
from internvl_jax.inference import Ladders, leading
from internvl_jax.models import AdapterPlaces, PartName, with_places
from launch import checkpoint, pod


def run(
    main: Callable[[list[str]], None],
    ladders: Callable[[], Ladders | None] = lambda: None,
    part: Callable[[], PartName] = lambda: "all",
    adapters: Callable[[], AdapterPlaces | None] = lambda: None,
    own: Callable[[], Adapter | None] = lambda: None,
) -> None:
    """Starts a launcher: process 0 of a pod does what it is for, the others follow with their part of the model.

    Args:
      ladders, part, adapters, own: give those that process 0 opens the model with.
    """

    def follow() -> None:
        with opened(ladders(), part(), adapters(), own()):
            pass

    pod.run(main, follow)


@contextlib.contextmanager
def opened(
    ladders: Ladders | None = None,
    part: PartName = "all",
    adapters: AdapterPlaces | None = None,
    own: Adapter | None = None,
) -> Iterator[tuple[Any, Processor]]:
    """The model and its processor; as long as it lasts, the processes of a pod answer together.

    Args:
      ladders: see `leading`.
      part: the half of the model that is loaded, or all of it.
      adapters: places for adapters beside it.
      own: an adapter that all answers are given with.
    """
    model, processor = checkpoint.load(part)
    model = model if own is None else attach(model, own)
    model = model if adapters is None else with_places(model, adapters)
    with leading(model, processor, ladders):
        yield model, processor
