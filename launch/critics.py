"""The critic that --critic names."""

import functools
import pathlib

import jax
from absl import flags

from internvl_jax.data import Processor
from internvl_jax.errors import InputError
from internvl_jax.inference import Critic, check_critic, read_config
from internvl_jax.validation import read_json
from launch import answering, checkpoint, hub

CRITIC = flags.DEFINE_string("critic", None, "a critic (VisualPRM) that says which is best; default: the answers' vote")


@functools.cache
def directory() -> pathlib.Path:
    """Where it lies on this machine."""
    return hub.directory(CRITIC.value)


def check() -> None:
    """Raises InputError for a critic that is none, before a model is loaded."""
    if jax.process_count() > 1:
        raise InputError("a critic judges in one process; leave out --distributed and its like, or --critic")
    ours = "format" in read_json(directory() / "config.json", "give --critic the directory of a critic")
    check_critic(read_config(directory())[1] if ours else Processor.from_released(directory()))


def load() -> Critic:
    """The critic, which sees as many tiles as --max_tiles says, or else as it was made for."""
    model, processor = checkpoint.load(folder=directory())
    return Critic(model, answering.limited(processor))
