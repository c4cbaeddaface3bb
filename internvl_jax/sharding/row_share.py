"""Which rows of a batch a process loads: those that its devices hold, together with the processes that hold them too.

Where a row is spread over several devices (the axes `tensor` and `context`), these may belong to several processes, as
a TPU's torus and its hosts are not cut the same way. All of them load that row then. Nor do the rows of a process have
to follow each other: the devices of a mesh lie in the torus's order, not in the processes'.
"""

import dataclasses
import math
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from internvl_jax.errors import InputError
from internvl_jax.sharding.batches import batch_shardings
from internvl_jax.sharding.rules import Rules


@dataclasses.dataclass(frozen=True)
class RowShare:
    """The share of a process; a batch is cut into as many blocks of rows as there are devices or groups of devices to
    spread rows over.

    Attributes:
      index, count: which share it is, of how many; processes of one share load the same rows.
      blocks: the places of its blocks in the batch, rising.
      spread: the blocks of a batch.
    """

    index: int
    count: int
    blocks: tuple[int, ...]
    spread: int

    def of(self, batch: Any) -> Any:
        """The share of a whole batch, a tree of arrays whose first axis is rows, or several entries for each row."""

        def cut(array: Any) -> Any:
            return array.reshape(self.spread, -1, *array.shape[1:])[list(self.blocks)].reshape(-1, *array.shape[1:])

        return jax.tree.map(cut, batch)

    def within(self, part: slice, per_block: int) -> slice:
        """Where in the share a device's part of the whole batch is: a block, or a part of one, as tiles are spread over
        the devices of a row, too.

        Args:
          per_block: entries of a block.
        """
        first, end, _ = part.indices(per_block * self.spread)
        block, inside = divmod(first, per_block)
        start = self.blocks.index(block) * per_block + inside
        return slice(start, start + end - first)

    def place(self, batch: Any, mesh: Mesh, rules: Rules) -> Any:
        """Puts the share that a process has loaded where the mesh has it; a global batch comes back.

        Args:
          batch: a tree of named tuples and dicts of numpy arrays; see `batch_shardings`.
        """
        where = batch_shardings(batch, mesh, rules)
        if jax.process_count() == 1:
            return jax.device_put(batch, where)

        def put(array: Any, sharding: NamedSharding) -> jax.Array:
            per_block = len(array) // len(self.blocks)

            part = lambda index: array[(self.within(index[0], per_block), *index[1:])]
            return jax.make_array_from_callback((per_block * self.spread, *array.shape[1:]), sharding, part)

        return jax.tree.map(put, batch, where)


def row_share(mesh: Mesh, rules: Rules, process: int) -> RowShare:
    """The share of a process.

    Raises:
      InputError: two processes share some rows and have others apart.
    """
    spread = math.prod(mesh.shape[axis] for axis in rules.batch)
    where = NamedSharding(mesh, rules.spec(("batch",))).devices_indices_map((spread,))
    held: dict[int, set[int]] = {}
    for device, (block,) in where.items():
        held.setdefault(device.process_index, set()).add(block.start or 0)
    shares = sorted({tuple(sorted(blocks)) for blocks in held.values()})
    if sum(map(len, shares)) != spread or len({*map(len, shares)}) > 1:
        sizes = ",".join(f"{axis}={size}" for axis, size in mesh.shape.items() if size > 1)
        raise InputError(
            f"on the mesh {sizes} processes hold some rows together and others apart; give the axes within a row "
            f"(tensor, context) sizes that divide the devices of a process, or are a multiple of them"
        )
    mine = tuple(sorted(held[process]))
    return RowShare(shares.index(mine), len(shares), mine, spread)
