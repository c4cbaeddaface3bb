"""How launchers start whose model may lie in several processes."""

import contextlib
import functools
from collections.abc import Callable, Iterator

from absl import flags

from internvl_jax.data import Processor
from internvl_jax.inference import leading
from internvl_jax.models import InternVL
from launch import answering, checkpoint, pod
from launch import main as launcher

flags.adopt_module_key_flags(pod)


def _follow() -> None:
    with opened():
        pass


def run(main: Callable[[list[str]], None], follow: Callable[[], None] = _follow) -> None:
    """Starts a launcher: process 0 of a pod does what it is for, the others follow with their part of the model."""

    def joined(argv: list[str]) -> None:
        with pod.joined(saved=False) as processes:
            if processes.process == 0:
                main(argv)
            else:
                follow()

    launcher.run(functools.wraps(main)(joined))


@contextlib.contextmanager
def opened() -> Iterator[tuple[InternVL, Processor]]:
    """The model and its processor; as long as it lasts, the processes of a pod answer together."""
    model, processor = checkpoint.load()
    with leading(model, processor):
        yield model, answering.adjusted(processor)
