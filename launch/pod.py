"""The flags by which the processes of a pod find each other."""

import functools
import os
from collections.abc import Callable

from absl import flags

from internvl_jax.errors import InputError
from internvl_jax.pod import Pod, place
from launch import main as launcher

_VARIABLES = {name: f"INTERNVL_JAX_{name.upper()}" for name in ("coordinator", "processes", "process")}
_help = lambda name, text: f"{text} (or ${_VARIABLES[name]})"
_DISTRIBUTED = flags.DEFINE_enum(
    "distributed", "off", ["off", "auto"], "auto: JAX finds the processes of a TPU pod, Slurm, Kubernetes or Open MPI"
)
_COORDINATOR = flags.DEFINE_string("coordinator", None, _help("coordinator", "HOST:PORT of process 0"))
_PROCESSES = flags.DEFINE_integer("processes", None, _help("processes", "how many processes there are"))
_PROCESS = flags.DEFINE_integer("process", None, _help("process", "the number of this process, from 0"))
_START = flags.DEFINE_integer("start_limit", 300, "seconds within which all processes must come", lower_bound=1)
_HEARTBEAT = flags.DEFINE_integer(
    "heartbeat_limit", 60, "seconds after which a silent machine is taken for dead", lower_bound=4
)


def joined(saved: bool = True) -> Pod:
    """The pod that flags or variables describe, or a run of one process; a context manager.

    Args:
      saved: see `Pod`.

    Raises:
      InputError: a part is missing or can't be, or nothing is found.
    """
    coordinator = _COORDINATOR.value or os.environ.get(_VARIABLES["coordinator"])
    processes, process = _number(_PROCESSES.value, "processes"), _number(_PROCESS.value, "process")
    options = _START.value, _HEARTBEAT.value, saved
    if _DISTRIBUTED.value == "auto":
        return Pod(place.found(coordinator, processes, process, _START.value), *options)
    if coordinator is None and processes is None and process is None:
        return Pod(saved=saved)
    return Pod(place.given(coordinator, processes, process), *options)


def run(main: Callable[[list[str]], None], follow: Callable[[], None]) -> None:
    """Starts a launcher: process 0 of a pod does what it is for, the others follow."""

    def started(argv: list[str]) -> None:
        with joined(saved=False) as processes:
            if processes.process == 0:
                main(argv)
            else:
                follow()

    launcher.run(functools.wraps(main)(started))


def _number(flag: int | None, name: str) -> int | None:
    text = os.environ.get(_VARIABLES[name])
    if flag is not None or not text:
        return flag
    try:
        return int(text)
    except ValueError:
        raise InputError(f"{_VARIABLES[name]} is {text!r}; it must be a whole number") from None
