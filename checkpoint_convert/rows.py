"""A row says where the tensors of a released checkpoint go: source name, target parameter, einops pattern.

A row reads forwards (released -> ours) and, with its pattern turned round, backwards (ours -> released). Placeholders
such as `{i}` count the leading axes of the target: `{i}` alone is the layer axis, `{i}` and `{e}` layer and expert.
"""

import dataclasses
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol, Self

import numpy as np
from einops import rearrange

_PLACEHOLDER = re.compile(r"\{(\w+)\}")


class Shaped(Protocol):
    """A parameter, or what is known of it."""

    @property
    def shape(self) -> tuple[int, ...]: ...


@dataclasses.dataclass(frozen=True)
class Row:
    """Attributes:
    source: template of a tensor name, or several templates whose tensors are stacked into one target.
    target: path of the parameter.
    pattern: einops pattern from the source tensor to the target without its placeholder axes. With several templates
      the left side begins with the axis along which the tensors are stacked.
    """

    source: str | tuple[str, ...]
    target: str
    pattern: str = "... -> ..."

    @property
    def templates(self) -> tuple[str, ...]:
        return (self.source,) if isinstance(self.source, str) else self.source

    @property
    def in_bytes(self) -> bool:
        """Are the source tensors bytes, not numbers?"""
        return False

    @property
    def stacked_axes(self) -> int:
        """Leading axes of the target that placeholders count."""
        return len(_PLACEHOLDER.findall(self.templates[0]))

    @property
    def keeps_first_axis(self) -> bool:
        """Rows of the source tensor are rows of the target: a slice of one is made of that slice of the other."""
        left, right = (side.split()[0] for side in self.pattern.split("->"))
        return isinstance(self.source, str) and left == right

    def fitted(self, specs: Mapping[str, Shaped]) -> Self:
        """The row for a model that has these parameters."""
        return self

    def names(self, shape: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], tuple[str, ...]]]:
        """Position along the placeholder axes -> tensor names, for a target of this shape."""
        counters = _PLACEHOLDER.findall(self.templates[0])
        for position in itertools.product(*(range(size) for size in shape[: len(counters)])):
            values = dict(zip(counters, position, strict=True))
            yield position, tuple(template.format(**values) for template in self.templates)

    def source_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape that each source tensor must have, for a target of this shape."""
        nothing = np.broadcast_to(np.uint8(0), shape[self.stacked_axes :])
        return self.backwards(nothing)[0].shape

    def source_shapes(self, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
        """`source_shape` for each of the templates."""
        return [self.source_shape(shape)] * len(self.templates)

    def dtype(self, stored: Sequence[np.dtype]) -> np.dtype:
        """The type of the target, where its source tensors have these."""
        return np.result_type(*stored)

    def read(
        self, tensors: Sequence[np.ndarray], shape: tuple[int, ...], index: tuple[slice, ...], out: np.ndarray
    ) -> None:
        """A slice of one position of a target of this shape -> `out`."""
        out[...] = self.forwards(tensors, shape)[index]

    def forwards(self, tensors: Sequence[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
        """Source tensors -> one position of a target of this shape; a view where there is one contiguous source."""
        tensor = tensors[0] if isinstance(self.source, str) else np.stack(tensors)
        right = self.pattern.split("->")[1].split()
        sizes = {} if right == ["..."] else dict(zip(right, shape[self.stacked_axes :], strict=True))
        return rearrange(tensor, self.pattern, **sizes)

    def backwards(self, piece: np.ndarray) -> Sequence[np.ndarray]:
        """One position of a target -> its source tensors."""
        left, right = self.pattern.split("->")
        tensor = rearrange(piece, f"{right} -> {left}")
        return [tensor] if isinstance(self.source, str) else list(tensor)

    def written(self, names: Sequence[str], piece: np.ndarray, first_row: int) -> Iterator[tuple[str, int, np.ndarray]]:
        """Tensor name, row, and what has to be written there, for a piece of one position of the target.

        Args:
          names: the names of the position's tensors.
          piece: all of the position, or from `first_row` on where `keeps_first_axis`.
        """
        for name, tensor in zip(names, self.backwards(piece), strict=True):
            yield name, first_row, tensor


@dataclasses.dataclass(frozen=True)
class SharedRow(Row):
    """Reads one of several parameters that lie in one tensor in turns, `[(heads, width of a head), ...]`.

    For each head of the last parameter the tensor has first the share of the first one's heads, then the share of the
    second, and so on: InternLM2's wqkv holds, for each key/value head, its queries, its key and its value.

    Attributes:
      parameters: all of them, in their order.
      heads: how many heads each has; known of a fitted row.
    """

    parameters: tuple[str, ...] = ()
    heads: tuple[int, ...] = ()

    @property
    def keeps_first_axis(self) -> bool:
        return False

    def fitted(self, specs: Mapping[str, Shaped]) -> Self:
        heads = tuple(specs[path].shape[self.stacked_axes] for path in self.parameters)
        return dataclasses.replace(self, heads=heads)

    @property
    def _share(self) -> slice:
        """Where this parameter's heads stand within a turn."""
        shares = [count // self.heads[-1] for count in self.heads]
        at = self.parameters.index(self.target)
        return slice(sum(shares[:at]), sum(shares[: at + 1]))

    def source_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        _, width, *rest = shape[self.stacked_axes :]
        return (sum(self.heads) * width, *rest)

    def forwards(self, tensors: Sequence[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
        _, width, *rest = here = shape[self.stacked_axes :]
        turns = tensors[0].reshape(self.heads[-1], -1, width, *rest)
        return turns[:, self._share].reshape(here)

    def backwards(self, piece: np.ndarray) -> Sequence[np.ndarray]:
        raise ValueError(f"{self.target} is a part of {self.source}; use `written`")

    def written(self, names: Sequence[str], piece: np.ndarray, first_row: int) -> Iterator[tuple[str, int, np.ndarray]]:
        del first_row  # a piece is always whole
        width, (name,) = piece.shape[1], names
        turn = sum(self.heads) // self.heads[-1] * width
        for number, heads in enumerate(np.split(piece, self.heads[-1])):
            yield name, number * turn + self._share.start * width, heads.reshape(-1, *piece.shape[2:])


def to_released(rows: Sequence[Row], params: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """All rows backwards: {path: array} -> the released names and tensors, one after the other.

    Rows whose target `params` lacks (biases, norms and heads that this model has not) are left out.

    Raises:
      ValueError: a parameter that no row writes.
    """
    if homeless := sorted(params.keys() - {row.target for row in rows}):
        raise ValueError(f"no row of the table writes the parameters {homeless}; add rows")
    shared: dict[str, np.ndarray] = {}
    for row in (row.fitted(params) for row in rows if row.target in params):
        leaf = params[row.target]
        for position, names in row.names(leaf.shape):
            if not isinstance(row, SharedRow):
                yield from zip(names, row.backwards(leaf[position]), strict=True)
                continue
            for name, start, tensor in row.written(names, leaf[position], 0):
                whole = shared.setdefault(name, np.empty(row.source_shape(leaf.shape), leaf.dtype))
                whole[start : start + len(tensor)] = tensor
    yield from shared.items()
