"""Parameters of a model that a run begins with or refers to, checked against the run's own model."""

import logging
import re
from typing import Any

from internvl_jax.errors import InputError
from internvl_jax.inference import read_values
from internvl_jax.models import FLASH_PARTS, InternVLConfig
from internvl_jax.sharding import Params, locate, read_params
from internvl_jax.training.run.program import Program
from internvl_jax.validation import differences

_LOG = logging.getLogger(__name__)


def read_initial(source: str, program: Program, extend: bool = False) -> Params:
    """The parameters of a model directory or workdir, in their places and with their dtypes in the program.

    Args:
      extend: a Flash model may start from its base; what it has besides begins with random values.

    Raises:
      InputError: it holds another model, or not exactly its parameters.
    """
    theirs, ours, abstract = _model_of(source), program.model.to_dict(), program.abstract.params
    lacking = []
    if theirs["flash"] is None and ours["flash"] is not None:
        if not extend:
            raise InputError(
                f"{source} has no router and no compressed branch; give a Flash model: objective 'consistency' makes "
                "one of it"
            )
        lacking = [path for path in abstract if re.search(FLASH_PARTS, path)]
        theirs["flash"] = ours["flash"]
    _check_same(source, ours, theirs)
    params = read_params(locate(source), {path: leaf for path, leaf in abstract.items() if path not in lacking})
    if lacking:
        _LOG.info("%s has no router and no compressed branch: they begin with random values of run.seed", source)
        params |= program.random_params(lacking)
    return params


def read_reference(source: str, program: Program) -> Params:
    """The frozen reference of a stage. It sees every tile at full resolution, so what a Flash model has besides its
    base is not read.

    Raises:
      InputError: it holds another model, or not exactly its parameters.
    """
    theirs, ours = _model_of(source), program.model.to_dict()
    _check_same(source, {**ours, "flash": None}, {**theirs, "flash": None})
    return read_params(locate(source), program.abstract_reference, ignore=FLASH_PARTS)


def _model_of(source: str) -> dict[str, Any]:
    """The model config of a model directory or workdir."""
    return InternVLConfig.from_dict(read_values(source).get("model")).to_dict()


def _check_same(source: str, ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    # Settings of the stage or of inference, not of the weights.
    theirs["vision"]["drop_path"] = ours["vision"]["drop_path"]
    if ours["flash"] is not None and theirs["flash"] is not None:
        theirs["flash"] = {**ours["flash"], "heads": theirs["flash"]["heads"]}
    if lines := differences(ours, theirs):
        raise InputError(f"{source} holds another model ({'; '.join(lines[:5])}); give its config")
