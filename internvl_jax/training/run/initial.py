"""Parameters of a model that a run begins with or refers to, checked against the run's own model."""

import dataclasses
import logging
import os
import re
from collections.abc import Collection
from typing import Any

from internvl_jax.errors import InputError
from internvl_jax.inference import read_values
from internvl_jax.models import FLASH_PARTS, InternVLConfig, plain_path, read_plain
from internvl_jax.sharding import Params
from internvl_jax.training.run.adapting import adapted_params
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
    lora = program.model.lora
    theirs, ours, abstract = _model_of(source), _model_dict(program.model), program.abstract.params
    lacking = []
    if theirs["flash"] is None and ours["flash"] is not None:
        if not extend:
            raise InputError(
                f"{source} has no router and no compressed branch; give a Flash model: objective 'consistency' makes "
                "one of it"
            )
        lacking = [path for path in abstract if re.search(FLASH_PARTS, path)]
        _check_lacking(source, lacking, program)
        theirs["flash"] = ours["flash"]
    _check_same(source, ours, theirs)
    params = adapted_params(read_plain(source, _plain(abstract, set(lacking))), lora)
    if lacking:
        _LOG.info("%s has no router and no compressed branch: they begin with random values of run.seed", source)
    fresh = [path for path in abstract if path not in params]
    return params | program.random_params(fresh) if fresh else params


def _check_lacking(source: str, lacking: list[str], program: Program) -> None:
    """Raises InputError where parameters would begin with random values and stay so, frozen beside adapters."""
    lora, idle = program.model.lora, program.objective.idle
    if lora is None:
        return
    ours = [path for path in lacking if plain_path(path) is not None and not re.search(idle, path)]
    if lost := [path for path in ours if path not in lora.whole]:
        raise InputError(
            f"{source} has no {lost[0].partition('.')[0]} branch: it would begin with random values and stay frozen "
            r"beside the adapters; train it whole with lora.whole='^compressed\.'"
        )


def read_base(source: str, program: Program) -> Params:
    """Those parameters of a state that checkpoints do not hold: the frozen base, from where the run began.

    Raises:
      InputError: see `read_plain`.
    """
    wanted = _plain(program.abstract.params, program.saved)
    return adapted_params(read_plain(source, wanted, partly=True), program.model.lora)


def _plain(params: Params, others: Collection[str]) -> Params:
    """What of them a model without adapter has, under its names, but for others."""
    named = {path: plain_path(path) for path in params if path not in others}
    return {plain: params[path] for path, plain in named.items() if plain is not None}


def read_reference(source: str, program: Program, start: str = "") -> Params:
    """The frozen reference of a stage, or what of it is not in a state anyway: the base that a run began with, beside
    which only adapters are trained. It sees every tile at full resolution, so what a Flash model has besides its base
    is not read.

    Args:
      start: where the run began.

    Raises:
      InputError: it holds another model, or not exactly its parameters.
    """
    theirs, ours = _model_of(source), _model_dict(program.model)
    _check_same(source, {**ours, "flash": None}, {**theirs, "flash": None})
    if not shared_base(source, start, program):
        return read_plain(source, program.abstract_reference, ignore=FLASH_PARTS)
    wanted = program.own_reference
    return read_plain(source, wanted, partly=True) if wanted else {}


def shared_base(source: str, start: str, program: Program) -> bool:
    """Whether a reference is the base that a run began with and holds in its state."""
    return program.model.lora is not None and os.path.realpath(source) == os.path.realpath(start)


def _model_of(source: str) -> dict[str, Any]:
    """The model config of a model directory or workdir."""
    return _model_dict(InternVLConfig.from_dict(read_values(source).get("model")))


def _model_dict(model: InternVLConfig) -> dict[str, Any]:
    """Without adapter: those of a start are merged, those of the run are its own. Weights are quantised as read."""
    return dataclasses.replace(model, lora=None, quantised=None).to_dict()


def _check_same(source: str, ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    # Settings of the stage or of inference, not of the weights.
    theirs["vision"]["drop_path"] = ours["vision"]["drop_path"]
    if ours["flash"] is not None and theirs["flash"] is not None:
        theirs["flash"] = {**ours["flash"], "heads": theirs["flash"]["heads"]}
    if lines := differences(ours, theirs):
        raise InputError(f"{source} holds another model ({'; '.join(lines[:5])}); give its config")
