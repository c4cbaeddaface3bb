"""Parameters on disk: an orbax checkpoint of the flat dict {dotted path: array}."""

import pathlib
from collections.abc import Mapping

import jax
import orbax.checkpoint.experimental.v1 as ocp
from jax.sharding import Sharding, SingleDeviceSharding

from internvl_jax.errors import InputError
from internvl_jax.sharding import ParamSpec


def write_params(directory: pathlib.Path, params: Mapping[str, jax.Array]) -> None:
    """Writes `directory`, which must not exist; it appears under this name once it is whole."""
    ocp.save(directory.absolute(), dict(params))


def read_params(
    directory: pathlib.Path,
    specs: Mapping[str, ParamSpec],
    dtype: str | None = None,
    where: Mapping[str, Sharding] | None = None,
) -> dict[str, jax.Array]:
    """Reads what `write_params` wrote; each device reads its own part.

    Args:
      specs: the parameters that the model has.
      dtype: to convert to; None keeps what is stored.
      where: sharding of every parameter; None puts all on the first device.

    Raises:
      InputError: no checkpoint, or parameters that are missing, unknown or of another shape.
    """
    if not (directory / "commit_success.txt").exists():
        raise InputError(f"{directory} holds no finished checkpoint; give the folder of a saved model")
    stored = ocp.metadata(directory.absolute()).metadata
    problems = {
        "missing": sorted(specs.keys() - stored.keys()),
        "not expected": sorted(stored.keys() - specs.keys()),
        "of another shape": [
            path for path in sorted(specs.keys() & stored.keys()) if stored[path].shape != specs[path].shape
        ],
    }
    if any(problems.values()):
        found = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in problems.items() if names)
        raise InputError(f"parameters in {directory} do not fit its config.json ({found}); use files of one model")
    here = SingleDeviceSharding(jax.devices()[0])
    return ocp.load(
        directory.absolute(),
        {
            path: jax.ShapeDtypeStruct(
                spec.shape, dtype or stored[path].dtype, sharding=here if where is None else where[path]
            )
            for path, spec in specs.items()
        },
    )
