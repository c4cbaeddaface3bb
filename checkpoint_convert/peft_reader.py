"""Adapters in: PEFT directories of either format's names, and what `wrapped` finds in whole checkpoints.

The tensors say which modules have adapters; every one of them is read, or the adapter is refused.
"""

import dataclasses
import functools
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from checkpoint_convert.account import refuse
from checkpoint_convert.adapters import Adapter, check_plain
from checkpoint_convert.hf_config import language_model
from checkpoint_convert.peft_config import WEIGHTS, read_peft_config
from checkpoint_convert.rows import Row, SharedRow
from checkpoint_convert.source import Tensor, open_directory, open_file
from checkpoint_convert.structures import specs_of
from checkpoint_convert.tables import TABLES, Table
from checkpoint_convert.wrapped import split
from internvl_jax.errors import InputError
from internvl_jax.models import AdaptedWeight, InternVLConfig, LoraConfig
from internvl_jax.sharding import ParamSpec

_FACTOR = re.compile(r"(.*)\.lora_([AB])(?:\.default)?\.weight")
# Of an adapter of the language model alone, which its own code wrapped.
_ALONE = (r"^(model\.layers\.)", r"language_model.\1")
RankOf = Callable[[str, int], tuple[int, float]]


@dataclasses.dataclass(frozen=True)
class _Home:
    """Where a tensor goes: to a position of a row's target, as its n-th tensor."""

    row: Row
    position: tuple[int, ...]
    part: int


@dataclasses.dataclass(frozen=True)
class _Block:
    """A module's adapter, `a [rank, in]` and `b [out, rank]`."""

    a: np.ndarray
    b: np.ndarray
    alpha: float


def read_adapter(directory: str | pathlib.Path, config: InternVLConfig) -> Adapter:
    """The PEFT adapter in a folder, for a model.

    Args:
      config: of the model without adapter.

    Raises:
      InputError: the model has an adapter already; files that are missing or broken, see `read_peft_config`; tensors
        that are not of this model, not of the shapes that it needs, incomplete, or not finite.
    """
    check_plain(config.lora)
    directory = pathlib.Path(directory)
    peft = read_peft_config(directory)
    prefix = "base_model.model."
    tensors = {name.removeprefix(prefix): tensor for name, tensor in open_file(directory / WEIGHTS).items()}

    def rank_of(module: str, stored: int) -> tuple[int, float]:
        rank, alpha = peft.of(module)
        if rank != stored:
            raise InputError(f"{directory}: {module} has rank {stored}, its config {rank}; take both of one adapter")
        return rank, alpha

    return _read(directory, tensors, config, rank_of, {"rslora": peft.rslora, "dropout": peft.dropout})


def wrapped_adapter(directory: str | pathlib.Path, config: InternVLConfig) -> Adapter | None:
    """The adapter within a released checkpoint; None where there is none.

    Raises:
      InputError: see `open_directory` and `read_adapter`.
    """
    directory = pathlib.Path(directory)
    _, tensors = split(open_directory(directory))
    return _read(directory, tensors, config, lambda module, stored: (stored, 2.0 * stored), {}) if tensors else None


def _read(
    directory: pathlib.Path,
    tensors: Mapping[str, Tensor],
    config: InternVLConfig,
    rank_of: RankOf,
    more: dict[str, Any],
) -> Adapter:
    config = dataclasses.replace(config, quantised=None)  # weights have the same names and shapes
    specs = specs_of(config)
    homes = _homes(directory, tensors, config, specs)
    blocks: dict[str, dict[tuple[int, ...], dict[int, _Block]]] = {}
    whole: dict[str, dict[str, Tensor]] = {}
    factors: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if found := _FACTOR.fullmatch(name):
            factors.setdefault(found[1], {})[found[2]] = tensor
            continue
        for place in homes[name]:
            whole.setdefault(place.row.target, {})[f"{place.position} {place.part}"] = tensor
    missing = [f"{module}.lora_{factor}" for module, pair in factors.items() for factor in "AB" if factor not in pair]
    refuse(directory, {"missing": missing}, adapter=True)
    for module, pair in factors.items():
        for place in homes[f"{module}.lora_A.weight"]:
            block = _block(directory, module, pair, place, specs[place.row.target], rank_of)
            blocks.setdefault(place.row.target, {}).setdefault(place.position, {})[place.part] = block
    weights = tuple(_weight(directory, target, blocks[target], specs, homes) for target in sorted(blocks))
    lora = LoraConfig(weights, tuple(sorted(whole)), **more)
    adapted = specs_of(dataclasses.replace(config, lora=lora))
    params: dict[str, np.ndarray] = {}
    for weight in weights:
        params |= _arrays(weight, lora, blocks[f"{weight.path}.weight"], adapted)
    rows = {place.row.target: place.row for places in homes.values() for place in places}
    for path, parts in whole.items():
        params[path] = _whole(directory, rows[path], parts, specs[path])
    adapter = Adapter(lora, params)
    refuse(directory, {"not finite": adapter.not_finite}, adapter=True)
    return adapter


def _homes(
    directory: pathlib.Path, tensors: Mapping[str, Tensor], config: InternVLConfig, specs: Mapping[str, ParamSpec]
) -> dict[str, list[_Home]]:
    """The places of every tensor, by the names of whichever format has them all."""
    if strange := sorted(name for name in tensors if re.search(r"\.lora_(embedding_|magnitude)", name)):
        raise InputError(
            f"{directory}: {strange[0]} is an embedding's adapter or DoRA's, which are not read; merge it with PEFT"
        )
    unread: list[list[str]] = []
    for form in ("hf", "github"):
        if (table := TABLES.get((form, language_model(config.text)))) is None:
            continue
        places = _places(table, specs)
        homes = {name: places.get(_canonical(table, name), []) for name in tensors}
        lost = sorted(name for name, found in homes.items() if not found)
        if not lost:
            return homes
        unread.append(lost)
    refuse(directory, {"of no module of this model": min(unread, key=len)}, adapter=True)
    return {}


def _canonical(table: Table, name: str) -> str:
    found = _FACTOR.fullmatch(name)
    name = f"{found[1]}.weight" if found else re.sub(r"\.modules_to_save(\.default)?\.", ".", name)
    return table.canonical(re.sub(*_ALONE, name))


def _places(table: Table, specs: Mapping[str, ParamSpec]) -> dict[str, list[_Home]]:
    """Every tensor name of a released checkpoint -> where it goes."""
    found: dict[str, list[_Home]] = {}
    for row in table.rows_of(specs):
        for position, names in row.names(specs[row.target].shape):
            for part, name in enumerate(names):
                found.setdefault(name, []).append(_Home(row, position, part))
    return found


def _block(
    directory: pathlib.Path, module: str, pair: Mapping[str, Tensor], place: _Home, spec: ParamSpec, rank_of: RankOf
) -> _Block:
    """A module's adapter, its factors checked and laid out as ours: `a [rank, in]`, `b [out, rank]`."""
    a, b = (pair[name].array() for name in "AB")
    shape = place.row.source_shape(spec.shape)
    if len(shape) != 2 or place.row.in_bytes or not place.row.target.endswith(".weight"):
        raise InputError(
            f"{directory}: {module} is no product of a matrix; its adapter is not read: merge it with PEFT"
        )
    rank, alpha = rank_of(module, a.shape[0])
    if a.shape != (rank, shape[1]) or b.shape != (shape[0], rank):
        raise InputError(
            f"{directory}: the adapter of {module} is {list(b.shape)} x {list(a.shape)}, but the module is "
            f"{list(shape)}; give an adapter of this model"
        )
    if isinstance(place.row, SharedRow):  # a tensor of several parameters: each takes its rows
        outputs = spec.shape[place.row.stacked_axes : -1]
        b = place.row.forwards([b], (*spec.shape[: place.row.stacked_axes], *outputs, rank)).reshape(-1, rank)
    return _Block(a, b, alpha)


def _weight(
    directory: pathlib.Path,
    target: str,
    blocks: Mapping[tuple[int, ...], Mapping[int, _Block]],
    specs: Mapping[str, ParamSpec],
    homes: Mapping[str, list[_Home]],
) -> AdaptedWeight:
    """What is said of a weight. Parts of a fused one that have one `a` are one part."""
    parts = next(len(p.row.templates) for places in homes.values() for p in places if p.row.target == target)
    if parts > 1 and all(len(own) == parts and _one(list(own.values())) for own in blocks.values()):
        parts = 1
    axes, shape = specs[target].axes, specs[target].shape
    count = shape[0] if axes[0] == "layers" else 1
    layers: list[dict[int, set[tuple[int, float]]]] = [{} for _ in range(count)]
    for position, own in blocks.items():
        for part, block in own.items():
            layer = position[0] if axes[0] == "layers" else 0
            layers[layer].setdefault(min(part, parts - 1), set()).add((len(block.a), block.alpha))
    experts = shape[axes.index("expert")] if "expert" in axes else 1
    uneven = [layer for layer in layers for found in layer.values() if len(found) > 1]
    if uneven or len(blocks) != experts * sum(map(bool, layers)):
        raise InputError(
            f"{directory}: the experts of {target} have different adapters in one layer; merge it with PEFT"
        )
    said = [[next(iter(layer.get(part, {(0, 1.0)}))) for part in range(parts)] for layer in layers]
    ranks, alphas = (tuple(tuple(pair[k] for pair in layer) for layer in said) for k in (0, 1))
    return AdaptedWeight(target.removesuffix(".weight"), ranks, alphas)  # type: ignore[arg-type]


def _one(blocks: list[_Block]) -> bool:
    """Whether several modules have one `a` and one scale."""
    first = blocks[0]
    return all(np.array_equal(first.a, each.a) and first.alpha == each.alpha for each in blocks)


def _arrays(
    weight: AdaptedWeight,
    lora: LoraConfig,
    blocks: Mapping[tuple[int, ...], Mapping[int, _Block]],
    specs: Mapping[str, ParamSpec],
) -> dict[str, np.ndarray]:
    """A weight's `a`, `b` and `scale`, 0 where a layer has no or fewer rows."""
    path = f"{weight.path}.weight"
    every = [block for own in blocks.values() for block in own.values()]
    dtype = functools.reduce(np.promote_types, (array.dtype for block in every for array in (block.a, block.b)))
    spec_a, spec_b, spec_scale = (specs[f"{path}.{name}"] for name in ("a", "b", "scale"))
    a, b = np.zeros(spec_a.shape, dtype), np.zeros(spec_b.shape, dtype)
    stacked = len(spec_scale.shape) > 1 and "layers" in spec_scale.axes
    for position, own in blocks.items():
        for part, block in own.items():
            layer = position[0] if stacked else 0
            here, there = a[position], b[position]
            rows = weight.rows(layer, part if len(weight.widths) > 1 else 0)
            here[rows] = block.a.reshape(len(block.a), *here.shape[1:])
            side = there[part] if len(own) > 1 or len(weight.widths) > 1 else there
            side[..., rows] = block.b.reshape(*side.shape[:-1], len(block.a))
    scale = lora.scales(weight)
    if "expert" in spec_scale.axes:
        scale = scale[:, None]
    scale = scale if stacked else scale[0]
    return {f"{path}.a": a, f"{path}.b": b, f"{path}.scale": np.broadcast_to(scale, spec_scale.shape).copy()}


def _whole(directory: pathlib.Path, row: Row, parts: Mapping[str, Tensor], spec: ParamSpec) -> np.ndarray:
    """A parameter that the adapter has whole."""
    places = [(position, names) for position, names in row.names(spec.shape)]
    wanted = {f"{position} {part}": name for position, names in places for part, name in enumerate(names)}
    refuse(
        directory,
        {
            "missing": [name for key, name in wanted.items() if key not in parts],
            "of another shape": [
                f"{name}: {list(parts[key].shape)} instead of {list(row.source_shape(spec.shape))}"
                for key, name in wanted.items()
                if key in parts and parts[key].shape != row.source_shape(spec.shape)
            ],
        },
        adapter=True,
    )
    out = np.empty(spec.shape, np.result_type(*{tensor.dtype for tensor in parts.values()}))
    for position, names in places:
        arrays = [parts[f"{position} {part}"].array() for part in range(len(names))]
        out[position] = row.forwards(arrays, spec.shape)
    return out
