"""Parameters on disk: an orbax checkpoint that holds the flat dict under the name `params`.

Both `MODEL/params` and `WORKDIR/checkpoints/STEP` are such checkpoints (the latter hold an optimizer as well).
"""

import os
import pathlib
from collections.abc import Mapping

import jax
import orbax.checkpoint.experimental.v1 as ocp

from internvl_jax.errors import InputError
from internvl_jax.sharding.state import Params

ITEM = "params"


def locate(directory: str | os.PathLike) -> pathlib.Path:
    """The checkpoint in a model directory, or the last one of a training workdir.

    Raises:
      InputError: there is neither.
    """
    directory = pathlib.Path(directory)
    if (directory / "params").is_dir():
        return directory / "params"
    # A step under its final name is whole; one being written has a longer name.
    steps = [path for path in (directory / "checkpoints").glob("*") if path.name.isdigit()]
    if not steps:
        raise InputError(f"{directory} holds neither params/ nor checkpoints/STEP; give a model directory or a workdir")
    return max(steps, key=lambda path: int(path.name))


def write_params(checkpoint: str | os.PathLike, params: Params) -> None:
    """Writes a new checkpoint; it is there under its name only when whole.

    Raises:
      InputError: it exists, or could not be written (no room, no permission).
    """
    path = pathlib.Path(checkpoint).absolute()
    if path.exists():
        raise InputError(f"{path} already exists; remove it or give another path")
    try:
        ocp.save_checkpointables(path, {ITEM: params})
    except (OSError, ValueError) as error:  # tensorstore reports a full disk as ValueError
        raise InputError(f"writing {path} failed ({first_line(error)}); make room and run it again") from error


def read_specs(checkpoint: str | os.PathLike) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape and dtype of every parameter, without reading any.

    Raises:
      InputError: no such checkpoint.
    """
    path = pathlib.Path(checkpoint).absolute()
    try:
        stored = ocp.checkpointables_metadata(path).metadata[ITEM]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no checkpoint with parameters ({first_line(error)}); give another path") from error
    return {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in stored.items()}


def read_params(checkpoint: str | os.PathLike, abstract: Mapping[str, jax.ShapeDtypeStruct]) -> Params:
    """Reads every parameter of `abstract` in its dtype onto its sharding; each device reads only what it holds.

    Raises:
      InputError: no such checkpoint, or its parameters are not exactly those of `abstract`.
    """
    path = pathlib.Path(checkpoint).absolute()
    stored = read_specs(path)
    wrong = [f"{name} is missing" for name in sorted(abstract.keys() - stored.keys())]
    wrong += [f"{name} is not of this model" for name in sorted(stored.keys() - abstract.keys())]
    for name in sorted(abstract.keys() & stored.keys()):
        if tuple(stored[name].shape) != tuple(abstract[name].shape):
            wrong.append(f"{name} is {tuple(stored[name].shape)}, not {tuple(abstract[name].shape)}")
    if wrong:
        more = f" and {len(wrong) - 8} more" if len(wrong) > 8 else ""
        raise InputError(f"{path} does not fit the model: {'; '.join(wrong[:8])}{more}; give the model's own config")
    try:
        return ocp.load_checkpointables(path, {ITEM: dict(abstract)})[ITEM]
    except (OSError, ValueError) as error:
        raise InputError(f"{path} can't be read ({first_line(error)}); copy or convert it again") from error


def first_line(error: Exception) -> str:
    """The first line of a library's message: the rest is its trace."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
