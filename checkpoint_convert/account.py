"""The strict account: every tensor of a checkpoint is read by one row, every parameter is written exactly once."""

import dataclasses
import pathlib
from collections.abc import Mapping

import numpy as np
from absl import logging

from checkpoint_convert.rows import Row
from checkpoint_convert.source import Tensor
from checkpoint_convert.tables import Table
from internvl_jax.errors import InputError
from internvl_jax.sharding import ParamSpec

_EMBEDDING, _HEAD = "lm.embed.weight", "lm.head.weight"
_LISTED = 20  # names per kind of problem in an error


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A parameter and the tensors that make it.

    Attributes:
      shape: the shape of the whole parameter.
      names: position along the placeholder axes -> names of the tensors as the checkpoint spells them.
    """

    row: Row
    shape: tuple[int, ...]
    names: dict[tuple[int, ...], tuple[str, ...]]


def match(
    directory: pathlib.Path, tensors: Mapping[str, Tensor], table: Table, specs: Mapping[str, ParamSpec]
) -> list[Leaf]:
    """Pairs the tensors of a checkpoint with the parameters of a model, by names and shapes alone.

    A second output matrix beside tied embeddings is accepted where it equals the embeddings.

    Raises:
      InputError: one sentence that lists what is missing, not expected, of another shape or type or given twice; or a
        second output matrix that differs.
      ValueError: the table has no row, or more than one, for a parameter (a fault of the table).
    """
    rows = table.rows_of(specs)
    targets = [row.target for row in rows]
    if faults := sorted({*(specs.keys() - set(targets)), *(path for path in targets if targets.count(path) > 1)}):
        raise ValueError(f"the table has no row or several rows for the parameters {faults}; mend the table")

    spelled: dict[str, list[str]] = {}
    for name in tensors:
        spelled.setdefault(table.canonical(name), []).append(name)
    problems = {"given twice": [name for names in spelled.values() if len(names) > 1 for name in names]}
    read: set[str] = set()  # by canonical spelling; a tensor may be several parameters'
    missing, misshaped, mistyped, leaves = [], [], [], []
    for row in rows:
        shape = tuple(specs[row.target].shape)
        shapes = row.source_shapes(shape)
        leaf = Leaf(row, shape, {})
        for position, names in row.names(shape):
            found = tuple(spelled.get(name, [name])[0] for name in names)
            read.update(names)
            for name, wanted in zip(found, shapes, strict=True):
                if name not in tensors:
                    missing.append(name)
                elif tensors[name].shape != wanted:
                    misshaped.append(f"{name}: {list(tensors[name].shape)} instead of {list(wanted)}")
                elif (tensors[name].dtype == np.uint8) != row.in_bytes:
                    mistyped.append(f"{name}: {tensors[name].dtype}")
            leaf.names[position] = found
        leaves.append(leaf)
    extra = [name for canonical, names in spelled.items() if canonical not in read for name in names]
    extra = [name for name in extra if not _repeats_embedding(directory, name, tensors, table, leaves)]
    wrong = {"of another shape": misshaped, "of another type": mistyped}
    refuse(directory, {"missing": missing, "not expected": extra, **wrong, **problems})
    return leaves


def refuse(directory: pathlib.Path, problems: Mapping[str, list[str]], adapter: bool = False) -> None:
    """Raises the one error that lists every problem, if there is any; of a checkpoint, or of an adapter."""
    if any(problems.values()):
        found = "; ".join(f"{kind}: {_listing(names)}" for kind, names in problems.items() if names)
        if adapter:
            raise InputError(
                f"the adapter in {directory} does not fit the model ({found}); give the one it was made for"
            )
        raise InputError(
            f"the tensors of {directory} do not fit its config.json ({found}); "
            "download the checkpoint again or use the config.json that belongs to it"
        )


def _repeats_embedding(
    directory: pathlib.Path, name: str, tensors: Mapping[str, Tensor], table: Table, leaves: list[Leaf]
) -> bool:
    """Is this the output matrix of a model with tied embeddings? Then it has to equal them."""
    head = next((row for row in table.rows if row.target == _HEAD), None)
    embedding = next((leaf for leaf in leaves if leaf.row.target == _EMBEDDING), None)
    if head is None or embedding is None or table.canonical(name) != head.source:
        return False
    (original,) = embedding.names[()]
    if original not in tensors:
        return False
    if not np.array_equal(tensors[name].array(), tensors[original].array()):
        raise InputError(
            f"config.json of {directory} ties the embeddings but {name} differs from {original}; set "
            "tie_word_embeddings to false there if the model has an output matrix of its own"
        )
    logging.warning("%s: %s repeats the tied embeddings %s and is left out", directory, name, original)
    return True


def _listing(names: list[str]) -> str:
    names = sorted(set(names))  # a tensor that several parameters share is missed by each
    listed = ", ".join(names[:_LISTED])
    return listed if len(names) <= _LISTED else f"{listed} and {len(names) - _LISTED} more"
