"""Training beside a frozen base: which weights have adapters, what is trained, saved, and the reference's own."""

import dataclasses
import re
from collections.abc import Iterable, Mapping

import jax
import numpy as np

from internvl_jax.errors import InputError
from internvl_jax.models import (
    FLASH_PARTS,
    NO_MATRICES,
    PARTS,
    AdaptedWeight,
    InternVLConfig,
    LoraConfig,
    Runtime,
    adapted_path,
    is_quantised,
    plain_path,
)
from internvl_jax.sharding import Params, ParamSpec, structure
from internvl_jax.training.config import Group, LoraSettings, OptimConfig
from internvl_jax.training.run.optim import assign
from internvl_jax.validation import shown

_SUFFIX = ".weight"


def with_adapter(model: InternVLConfig, settings: LoraSettings) -> InternVLConfig:
    """The model of a run: without the adapter that its start may have had, which is merged, and with its own.

    Raises:
      InputError: a pattern that is no regular expression, or that finds nothing; adapters of what PEFT has none of, and
        dropout for those of experts; quantised weights that would be trained.
    """
    plain = dataclasses.replace(model, lora=None, quantised=None)
    if not settings.active:
        if settings.quantise or model.quantised is not None:
            raise InputError("quantised weights can't be trained; set lora.rank, or start from what they were made of")
        return plain
    specs = structure(PARTS["all"], plain, Runtime())[1]
    targets, whole = _compiled(settings.targets, "targets"), _compiled(settings.whole, "whole")
    kept = tuple(sorted(path for path in specs if settings.whole and whole.search(path)))
    if settings.whole and not kept:
        raise InputError(f"lora.whole: the pattern {settings.whole!r} finds no parameter; correct it or leave it empty")
    weights = []
    for path, spec in specs.items():
        if settings.rank and path.endswith(_SUFFIX) and path not in kept:
            weights += _adapted(path.removesuffix(_SUFFIX), spec, targets, settings)
    if settings.rank and not weights:
        raise InputError(f"lora.targets: the pattern {settings.targets!r} finds no weight; correct it")
    if tables := [each.path for each in weights if each.path in NO_MATRICES]:
        raise InputError(
            f"lora.targets: the pattern {settings.targets!r} finds {tables[0]}, which is no matrix, so PEFT would take "
            r"no adapter of it; correct it ('^(vit|lm)\.layers' are all layers)"
        )
    if settings.dropout and (experts := [each.path for each in weights if "expert" in specs[each.path + _SUFFIX].axes]):
        raise InputError(
            f"lora.dropout is {settings.dropout}, but adapters of experts ({experts[0]}) have none; set it to 0"
        )
    lora = LoraConfig(tuple(sorted(weights, key=lambda each: each.path)), kept, settings.rslora, settings.dropout)
    how = settings.quantise or model.quantised
    how = "int8" if how == "w8a8" else how  # rounded inputs have no gradient
    if how and (lost := [path for path in kept if is_quantised(path, how)]):
        raise InputError(f"lora.whole: {lost[0]} is quantised, and can't be trained; correct the pattern")
    return dataclasses.replace(plain, lora=lora, quantised=how or None)


def _adapted(path: str, spec: ParamSpec, targets: re.Pattern[str], settings: LoraSettings) -> list[AdaptedWeight]:
    """The adapters of a weight, if it has any."""
    stack, dot, rest = path.partition(".layers.")
    stacked = bool(dot) and spec.axes[0] == "layers"
    names = [f"{stack}.layers.{layer}.{rest}" for layer in range(spec.shape[0])] if stacked else [path]
    groups = [(_compiled(group.pattern, "groups"), group) for group in settings.groups]
    ranks, alphas = [], []
    for name in names:
        group = next((group for pattern, group in groups if pattern.search(name)), None)
        rank = settings.rank if group is None or group.rank is None else group.rank
        alpha = settings.alpha if group is None or group.alpha is None else group.alpha
        ranks.append((rank if targets.search(name) else 0,))
        alphas.append((float(alpha),))
    return [AdaptedWeight(path, tuple(ranks), tuple(alphas))] if any(rank for (rank,) in ranks) else []


def _compiled(pattern: str, field: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise InputError(f"lora.{field}: {shown(pattern)} is no regular expression ({error}); correct it") from None


def frozen_base(assigned: dict[str, Group], lora: LoraConfig | None) -> dict[str, Group]:
    """The groups of parameters, of which all are frozen but the adapter's.

    Raises:
      InputError: those are frozen, too.
    """
    if lora is None:
        return assigned
    frozen = Group(".*", frozen=True)
    found = {path: group if _trained(path, lora) else frozen for path, group in assigned.items()}
    if all(group.frozen for group in found.values()):
        raise InputError(
            "optim.groups freeze all that lora adapts or trains whole, nothing is left to train; thaw some"
        )
    return found


def check_thawed(assigned: dict[str, Group], lora: LoraConfig | None, idle: str) -> None:
    """Raises InputError where groups freeze what an adapter is to train: it would stay as it began, without a word.

    Args:
      idle: a pattern of the parameters that the objective gives no gradient, of which some may be trained whole.
    """
    if lora is None:
        return
    lost = [path for path, group in assigned.items() if group.frozen and _trained(path, lora)]
    if found := [path for path in lost if path not in lora.whole]:
        name = found[0].rpartition(".weight.")[0]
        raise InputError(
            f"optim.groups freeze {name}, so its adapter would not be trained: this stage leaves it as it is; narrow "
            "lora.targets, or thaw it"
        )
    if found := [path for path in lost if not re.search(idle, path) or lora.whole == tuple(sorted(lost))]:
        raise InputError(f"optim.groups freeze {found[0]}, which lora.whole is to train; narrow that, or thaw it")


def _trained(path: str, lora: LoraConfig) -> bool:
    return path.endswith((".weight.a", ".weight.b")) or path in lora.whole


def trained_params(specs: dict[str, ParamSpec], model: InternVLConfig, optim: OptimConfig) -> dict[str, ParamSpec]:
    """The parameters that a run has gradients and moments of, adapters and all.

    Raises:
      InputError: see `assign`.
    """
    assigned = frozen_base(assign(specs, optim.groups), model.lora)
    return {path: specs[path] for path, group in assigned.items() if not group.frozen}


def saved_paths(paths: Iterable[str], lora: LoraConfig | None) -> frozenset[str]:
    """What checkpoints hold of the parameters. A base is not among them: it lies where the run began. What a Flash
    model has besides its base is: a run may have made that itself.
    """
    return frozenset(
        path
        for path in paths
        if lora is None or plain_path(path) is None or path in lora.whole or re.search(FLASH_PARTS, path)
    )


def plain_params(params: Mapping[str, jax.Array], lora: LoraConfig | None) -> Params:
    """The frozen parameters of a run's base under their own names, the very arrays; nothing where all is trained."""
    if lora is None:
        return {}
    plain = {plain_path(path): value for path, value in params.items() if path not in lora.whole}
    return {path: value for path, value in plain.items() if path is not None}


def state_dtype(path: str, spec: ParamSpec, lora: LoraConfig | None, dtype: np.dtype, in_products: bool) -> np.dtype:
    """The dtype that a parameter has in the state of a run: what is frozen needs no master in float32."""
    frozen = lora is not None and not _trained(path, lora)
    return np.dtype(dtype) if frozen and in_products else np.dtype(spec.dtype)


def adapted_params(plain: Mapping[str, jax.Array], lora: LoraConfig | None) -> Params:
    """Parameters of a model without adapter, under the names that they have beside one."""
    return {adapted_path(path, lora): value for path, value in plain.items()}
