"""How launchers start whose model may lie in several processes."""

import contextlib
from collections.abc import Callable, Iterator

from internvl_jax.data import Processor
from internvl_jax.inference import leading
from internvl_jax.models import InternVL
from launch import answering, checkpoint, pod


def run(main: Callable[[list[str]], None]) -> None:
    """Starts a launcher: process 0 of a pod does what it is for, the others follow with their part of the model."""

    def follow() -> None:
        with opened():
            pass

    pod.run(main, follow)


@contextlib.contextmanager
def opened() -> Iterator[tuple[InternVL, Processor]]:
    """The model and its processor; as long as it lasts, the processes of a pod answer together."""
    model, processor = checkpoint.load()
    with leading(model, processor):
        yield model, answering.adjusted(processor)
