"""What all processes of a run must have in common, compared before anything is built on it.

Nothing later would notice: processes with other rows or rates train on, each on its own terms, to a loss of no meaning.
"""

import contextlib
import hashlib
import importlib.metadata
import itertools
import json
import pathlib
import platform
import time
from collections.abc import Callable
from typing import Any

import jax
from jax._src.distributed import global_state  # the store that JAX's processes share has no public name

import internvl_jax
from internvl_jax.errors import InputError
from internvl_jax.validation import differences

_SECONDS = 3600  # the slowest process may still be reading annotations
_SHOWN = 5  # differences
_COUNT = itertools.count()  # keys and barriers can be used once


def agree(name: str, ours: dict[str, Any]) -> None:
    """Compares a record of every process with that of process 0; all must call it, in the same order.

    Args:
      name: what the record is about.
      ours: anything that JSON can tell.

    Raises:
      InputError: on every process, the same: which processes differ, in which fields.
    """
    if global_state.num_processes == 1:
        return
    prefix = f"internvl_jax/agree/{next(_COUNT)}/{name}"
    ours = json.loads(json.dumps(ours, default=str))
    global_state.client.key_value_set(f"{prefix}/{global_state.process_id}", json.dumps(ours))

    def compare() -> None:
        ends = time.monotonic() + _SECONDS
        lines = []
        for rank in range(1, global_state.num_processes):
            theirs = json.loads(_get(f"{prefix}/{rank}", f"process {rank} has not told its {name}", ends))
            lines += differences(theirs, ours, sides=(f"on process {rank}", "on process 0"))
        if lines:
            more = f"; and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
            raise InputError(
                f"the processes differ in their {name} ({'; '.join(lines[:_SHOWN])}{more}); start all with the same "
                "command, program and data"
            )

    lead(f"comparing the {name}", compare)


def lead(name: str, work: Callable[[], None]) -> None:
    """Process 0 does the work, the others wait for its end; all must call it, in the same order.

    Raises:
      InputError: what process 0 raised, on every process.
    """
    if global_state.num_processes == 1:
        work()
        return
    key = f"internvl_jax/lead/{next(_COUNT)}"
    if global_state.process_id == 0:
        problem = "process 0 failed"
        try:
            work()
            problem = ""
        except (InputError, OSError) as error:
            problem = str(error)
            raise
        finally:
            global_state.client.key_value_set(key, problem)
    elif problem := _get(key, f"process 0 has not come to an end with {name}", time.monotonic() + _SECONDS):
        raise InputError(problem)


def versions() -> dict[str, str]:
    """Of whatever computes; of this package a digest of its sources, which differ more often than its version."""
    digest, root = hashlib.sha256(), pathlib.Path(internvl_jax.__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    found = {"python": platform.python_version(), "internvl_jax": digest.hexdigest()[:12]}
    for package in ("jax", "jaxlib", "libtpu", "flax", "optax"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def _get(key: str, late: str, ends: float) -> str:
    """The value of a key, once somebody sets it."""
    try:
        return global_state.client.blocking_key_value_get(key, max(1, int(1000 * (ends - time.monotonic()))))
    except jax.errors.JaxRuntimeError as error:
        if "DEADLINE_EXCEEDED" not in str(error):
            raise
        raise InputError(f"{late} within {_SECONDS} s; look at its log") from error
