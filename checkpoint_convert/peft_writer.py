"""Adapters out: PEFT directories, with the module names of either released format.

PEFT, transformers and vLLM load them. Names of modules are not those of tensors in an HF checkpoint: transformers 5 has
the language model at `model.language_model`, the tower at `model.vision_tower`.
"""

import dataclasses
import math
import pathlib
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from checkpoint_convert.adapters import Adapter
from checkpoint_convert.hf_config import language_model
from checkpoint_convert.peft_config import FILE, WEIGHTS
from checkpoint_convert.rows import Row, SharedRow
from checkpoint_convert.sink import SafetensorsWriter, write_json
from checkpoint_convert.structures import specs_of
from checkpoint_convert.tables import TABLES
from internvl_jax.errors import InputError
from internvl_jax.models import NO_MATRICES, AdaptedWeight, InternVLConfig
from internvl_jax.sharding import ParamSpec

_MODULES = {
    "github": (),
    "hf": (
        (r"^language_model\.lm_head", "lm_head"),
        (r"^language_model\.model\.", "model.language_model."),
        (r"^(vision_tower|multi_modal_projector)\.", r"model.\1."),
    ),
}


class _Module(NamedTuple):
    """A module's adapter: `a [rank, in]`, `b [out, rank]`."""

    name: str
    a: np.ndarray
    b: np.ndarray
    alpha: float


def write_adapter(directory: pathlib.Path, adapter: Adapter, config: InternVLConfig, form: str, base: str) -> None:
    """Writes adapter_config.json and adapter_model.safetensors.

    Args:
      config: of the model without adapter.
      form: whose names modules get, 'hf' or 'github'.
      base: what the config says of the base.

    Raises:
      InputError: a part of the adapter that no module of that format has.
    """
    table = TABLES.get((form, language_model(config.text)))
    if table is None:
        raise InputError(f"there are no {config.text.family} models in the format {form!r}; choose another one")
    specs = specs_of(dataclasses.replace(config, quantised=None))
    rows = {row.target: row for row in table.rows_of(specs)}
    modules = [
        module
        for weight in adapter.lora.weights
        for module in _modules(weight, adapter, rows.get(f"{weight.path}.weight"), specs[f"{weight.path}.weight"], form)
    ]
    if not modules:
        raise InputError("PEFT has no adapters that only have whole modules; convert to a whole checkpoint instead")
    tensors = {f"{module.name}.lora_{name}.weight": array for module in modules for name, array in _pair(module)}
    whole: dict[str, np.ndarray] = {}
    for path in adapter.lora.whole:
        whole |= _whole(rows.get(path), adapter.params[path], path, form)
    stored = {f"base_model.model.{name}": array for name, array in {**tensors, **whole}.items()}
    structs = {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in stored.items()}
    with SafetensorsWriter(directory, structs, WEIGHTS.removesuffix(".safetensors")) as writer:
        for name, array in stored.items():
            writer.write(name, 0, array)
    every = {
        _module_name(name, form)
        for row in rows.values()
        for _, names in row.names(specs[row.target].shape)
        for name in names
    }
    write_json(directory / FILE, _config(modules, _holders(whole, every), adapter, base))


def _pair(module: _Module) -> list[tuple[str, np.ndarray]]:
    return [("A", module.a), ("B", module.b)]


def _module_name(tensor: str, form: str) -> str:
    """The module of a tensor `...weight`, or a tensor itself, as the model's own code calls it."""
    for pattern, replacement in _MODULES[form]:
        tensor = re.sub(pattern, replacement, tensor)
    return tensor


def _modules(weight: AdaptedWeight, adapter: Adapter, row: Row | None, spec: ParamSpec, form: str) -> Iterator[_Module]:
    shape = () if row is None else row.source_shape(spec.shape)
    product = row is not None and all(name.endswith(".weight") for name in row.templates) and len(shape) == 2
    if row is None or not product or isinstance(row, SharedRow) or weight.path in NO_MATRICES:
        raise InputError(
            f"{weight.path} is no module with a matrix of its own in the format {form!r}, so PEFT has no adapter of "
            "it; convert to a whole checkpoint, which merges it"
        )
    a, b = (adapter.params[f"{weight.path}.weight.{name}"] for name in ("a", "b"))
    for position, names in row.names(spec.shape):
        layer = position[0] if "layers" in spec.axes else 0
        parts = list(_parts(weight, layer, a[position], b[position]))
        if len(names) > 1 and len(parts) == 1:  # one for all of a fused weight: the same `a`, and each its rows of `b`
            (whole_a, whole_b, alpha), count = parts[0], len(names)
            parts = [(whole_a, part, alpha) for part in whole_b.reshape(count, -1, whole_b.shape[-1])]
        elif len(names) == 1 and len(parts) > 1:
            parts = [_fused(weight, layer, parts, adapter.lora.rslora)]
        for name, (own_a, own_b, alpha) in zip(names, parts, strict=True):
            if len(own_a):
                own = own_a.reshape(len(own_a), -1), own_b.reshape(-1, own_b.shape[-1])
                yield _Module(_module_name(name.removesuffix(".weight"), form), *own, alpha)


def _parts(
    weight: AdaptedWeight, layer: int, a: np.ndarray, b: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, float]]:
    """The adapters of a weight's parts in a layer."""
    for part, alpha in enumerate(weight.alphas[layer]):
        rows = weight.rows(layer, part)
        yield a[rows], (b if len(weight.widths) == 1 else b[part])[..., rows], alpha


def _fused(
    weight: AdaptedWeight, layer: int, parts: list[tuple[np.ndarray, np.ndarray, float]], rslora: bool
) -> tuple[np.ndarray, np.ndarray, float]:
    """One adapter for a weight whose parts have their own: its rank is the sum of theirs.

    It has one scale. Where theirs differ, what a part's is more or less than the first one's goes into its `b`.
    """
    factor = lambda rank: math.sqrt(rank) if rslora else rank
    ranks = weight.ranks[layer]
    scales = [alpha / factor(rank) if rank else 0.0 for rank, (_, _, alpha) in zip(ranks, parts, strict=True)]
    first = next((scale for scale in scales if scale), 1.0)
    rank, outputs = sum(ranks), [b.reshape(-1, b.shape[-1]) for _, b, _ in parts]
    whole = np.zeros((sum(map(len, outputs)), rank), outputs[0].dtype)
    row = column = 0
    for b, scale in zip(outputs, scales, strict=True):
        block = b if scale in (0.0, first) else (b.astype(np.float32) * np.float32(scale / first)).astype(b.dtype)
        whole[row : row + len(b), column : column + b.shape[1]] = block
        row, column = row + len(b), column + b.shape[1]
    return np.concatenate([a for a, _, _ in parts]), whole, first * factor(rank) if rank else 1.0


def _whole(row: Row | None, value: np.ndarray, path: str, form: str) -> dict[str, np.ndarray]:
    """The tensors of a parameter that the adapter has whole."""
    if row is None or isinstance(row, SharedRow):
        raise InputError(f"{path} is no tensor of its own in the format {form!r}; convert to a whole checkpoint")
    return {
        _module_name(name, form): np.ascontiguousarray(tensor)
        for position, names in row.names(value.shape)
        for name, tensor in zip(names, row.backwards(value[position]), strict=True)
    }


def _holders(whole: dict[str, np.ndarray], every: set[str]) -> list[str]:
    """The modules that have these tensors; InputError where such a module has others besides.

    Args:
      every: all tensors that the model has in this format.
    """
    holders = sorted({name.rpartition(".")[0] for name in whole})
    for holder in holders:
        if lacking := sorted(name for name in every - whole.keys() if name.startswith(f"{holder}.")):
            raise InputError(
                f"PEFT keeps modules whole, and {holder} has {lacking[0]} besides; train that too, or convert to a "
                "whole checkpoint"
            )
    return holders


def _config(modules: list[_Module], holders: list[str], adapter: Adapter, base: str) -> dict[str, Any]:
    """adapter_config.json: the commonest rank and alpha, and patterns of whole names for modules with others."""
    rank = Counter(len(module.a) for module in modules).most_common(1)[0][0]
    alpha = Counter(module.alpha for module in modules).most_common(1)[0][0]
    number = lambda value: int(value) if float(value).is_integer() else value
    return {
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": number(alpha),
        "lora_dropout": adapter.lora.dropout,
        "modules_to_save": holders or None,
        "peft_type": "LORA",
        "r": rank,
        "alpha_pattern": {re.escape(m.name): number(m.alpha) for m in modules if m.alpha != alpha},
        "rank_pattern": {re.escape(m.name): len(m.a) for m in modules if len(m.a) != rank},
        "target_modules": _targets([module.name for module in modules]),
        "task_type": None,
        "use_dora": False,
        "use_rslora": adapter.lora.rslora,
    }


def _targets(names: list[str]) -> str:
    """A regular expression of exactly these modules: the layers of a kind together."""
    kinds: dict[tuple[str, str], list[str]] = {}
    for name in names:
        before, found, after = re.match(r"(.*?\.layers?\.|)(\d*)(.*)", name).groups()
        kinds.setdefault((before, after), []).append(found)
    by_layers: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for (before, after), numbers in kinds.items():
        by_layers.setdefault((before, tuple(numbers)), []).append(re.escape(after))
    groups = []
    for (before, layers), afters in by_layers.items():
        which = f"({'|'.join(layers)})" if before else ""
        groups.append(f"{re.escape(before)}{which}({'|'.join(afters)})")
    return "|".join(groups)
