"""The key/value cache of rows that are answered side by side, stacked over layers."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from internvl_jax.models.attention.attention import Mask, Window, attend
from internvl_jax.sharding import per_device, shard

_HALF = (None, "batch", "act_heads", None, None)  # keys or values of a class
_NEW = ("batch", "act_heads", None, None)
_ROW = ("batch",)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["k", "v"], meta_fields=["reach"])
@dataclasses.dataclass(frozen=True)
class SlotCache:
    """Keys and values of every row, one slot a position, in classes of length.

    A token's slot is its position, so what stands in a slot up to a query's own position was written by the query's
    row. The slots behind hold what earlier rows left; nothing sees them.

    Rows are numbered class by class. Where they are spread over devices, every device has as many rows of a class, and
    the numbers are those of the first device's rows, then of the second's.

    Attributes:
      k, v: keys and values of every class of rows, `[L, B of the class, M, S of the class, H]`.
      reach: attention reads at most this many slots of a row.
    """

    k: tuple[jax.Array, ...]
    v: tuple[jax.Array, ...]
    reach: int

    @classmethod
    def empty(
        cls, layers: int, kv_heads: int, width: int, classes: Sequence[tuple[int, int]], dtype: jnp.dtype
    ) -> "SlotCache":
        """A cache of nothing; `classes` are (rows, slots)."""
        make = lambda: tuple(jnp.zeros((layers, B, kv_heads, S, width), dtype) for B, S in classes)
        return cls(make(), make(), max(S for _, S in classes))

    def within(self, reach: int) -> "SlotCache":
        """The cache of which attention reads at most so many slots of a row."""
        return dataclasses.replace(self, reach=reach)

    def laid(self) -> "SlotCache":
        """The cache spread as rows are."""
        k, v = jax.tree.map(lambda half: shard(half, *_HALF), (self.k, self.v))
        return dataclasses.replace(self, k=k, v=v)

    def mask(self, segments_BT: jax.Array, positions_BT: jax.Array) -> jax.Array:
        """What the tokens of a call see follows from their positions."""
        return positions_BT

    def place(self, slots_BT: jax.Array, segments_BT: jax.Array, positions_BT: jax.Array) -> "SlotCache":
        """The cache itself: that a slot is taken follows from positions too."""
        return self

    def write(self, layer: jax.Array | int, k_BMTH: jax.Array, v_BMTH: jax.Array, slots_BT: jax.Array) -> "SlotCache":
        """The cache with the keys and values of one layer in their slots; a slot beyond the last one takes nothing."""

        def put(
            stacks: tuple[jax.Array, ...], new_BMTH: jax.Array, slots_BT: jax.Array, layer: jax.Array
        ) -> tuple[jax.Array, ...]:
            parts = zip(stacks, _parts(stacks, new_BMTH), _parts(stacks, slots_BT), strict=True)
            return tuple(_put(stack, layer, *part) for stack, *part in parts)

        halves = (_HALF,) * len(self.k)
        run = per_device(put, inputs=(halves, _NEW, ("batch", None), ()), output=halves)
        layer = jnp.asarray(layer)
        return dataclasses.replace(self, k=run(self.k, k_BMTH, slots_BT, layer), v=run(self.v, v_BMTH, slots_BT, layer))

    def attend(
        self,
        layer: jax.Array | int,
        q_BNTH: jax.Array,
        mask: jax.Array,
        window: Window | None,
        sinks_N: jax.Array | None,
    ) -> jax.Array:
        """Attention to all that a layer has stored up to the queries' own positions."""
        size, holds = (None, None) if window is None else window

        def on_device(
            q: jax.Array,
            k: tuple[jax.Array, ...],
            v: tuple[jax.Array, ...],
            positions_BT: jax.Array,
            layer: jax.Array,
            holds: jax.Array | None,
            sinks_N: jax.Array | None,
        ) -> jax.Array:
            near = None if size is None else Window(size, holds)
            parts = zip(_parts(k, q), k, v, _parts(k, positions_BT), strict=True)
            seen = lambda at, k: slots_seen(at, min(self.reach, k.shape[3]))
            outs = [attend(q, k, v, seen(at, k), near, layer, sinks_N) for q, k, v, at in parts]
            return outs[0] if len(outs) == 1 else jnp.concatenate(outs)

        queries, halves = ("batch", "act_heads", None, None), (_HALF,) * len(self.k)
        inputs = (queries, halves, halves, ("batch", None), (), (), ("act_heads",))
        run = per_device(on_device, inputs=inputs, output=queries)
        return run(q_BNTH, self.k, self.v, mask, jnp.asarray(layer), holds, sinks_N)

    def rows(self, number: int, rows_B: jax.Array, reach: int) -> "SlotCache":
        """A cache of some rows of one class, and of their first `reach` slots.

        Args:
          rows_B: their numbers within the class of their device, of every device equally many.
        """

        def take(stack: jax.Array, rows_B: jax.Array) -> jax.Array:
            one = lambda row: lax.dynamic_slice_in_dim(stack[:, :, :, :reach], row, 1, axis=1)
            return jnp.concatenate([one(row) for row in rows_B], axis=1)

        cut = per_device(take, inputs=(_HALF, _ROW), output=_HALF)
        return SlotCache((cut(self.k[number], rows_B),), (cut(self.v[number], rows_B),), reach)

    def longer(self, slots: int) -> "SlotCache":
        """The cache of one class with so many more slots, behind the others."""
        pad = lambda half: jnp.pad(half, ((0, 0),) * 3 + ((0, slots), (0, 0)))
        return SlotCache((pad(self.k[0]),), (pad(self.v[0]),), self.reach + slots)

    def put(
        self,
        number: int,
        rows_B: jax.Array,
        starts_B: jax.Array,
        counts_B: jax.Array,
        kv_LBMTH: tuple[jax.Array, jax.Array],
    ) -> "SlotCache":
        """The cache with T tokens of some rows of one class in their slots from `starts_B` on.

        Args:
          rows_B: see `rows`.
          counts_B: how many of the tokens are real; where none is, the row is left as it is.
        """

        def fill(
            stack: jax.Array, rows_B: jax.Array, starts_B: jax.Array, counts_B: jax.Array, new_LBMTH: jax.Array
        ) -> jax.Array:
            def one(b: jax.Array | int, stack: jax.Array) -> jax.Array:
                place = (0, rows_B[b], 0, starts_B[b], 0)
                new = kept(lax.dynamic_slice_in_dim(new_LBMTH, b, 1, axis=1), stack.dtype)
                new = jnp.where(counts_B[b] > 0, new, lax.dynamic_slice(stack, place, new.shape))
                return lax.dynamic_update_slice(stack, new, place)

            return one(0, stack) if len(rows_B) == 1 else lax.fori_loop(0, len(rows_B), one, stack)

        run = per_device(fill, inputs=(_HALF, _ROW, _ROW, _ROW, _HALF), output=_HALF)

        def replaced(stacks: tuple[jax.Array, ...], new_LBMTH: jax.Array) -> tuple[jax.Array, ...]:
            filled = run(stacks[number], rows_B, starts_B, counts_B, new_LBMTH)
            return (*stacks[:number], filled, *stacks[number + 1 :])

        return dataclasses.replace(self, k=replaced(self.k, kv_LBMTH[0]), v=replaced(self.v, kv_LBMTH[1]))


def slots_seen(positions_BT: jax.Array, slots: int) -> Mask:
    """Of so many slots those up to a query's own."""
    places_BS = jnp.broadcast_to(jnp.arange(slots, dtype=jnp.int32)[None], (len(positions_BT), slots))
    return Mask(jnp.ones_like(positions_BT), positions_BT, jnp.ones_like(places_BS), places_BS, ordered=False)


def _put(stack: jax.Array, layer: jax.Array, new_BMTH: jax.Array, slots_BT: jax.Array) -> jax.Array:
    B, M = new_BMTH.shape[:2]
    place = layer, jnp.arange(B)[:, None, None], jnp.arange(M)[None, :, None], slots_BT[:, None, :]
    return stack.at[place].set(kept(new_BMTH, stack.dtype), mode="drop")


def kept(x: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Keys or values in the dtype of a cache. What 8 bits can't hold becomes the largest value that they can: float8
    has no infinity, and a cast would make NaN of it.
    """
    if dtype.itemsize == 1 and x.dtype != dtype:
        largest = float(jnp.finfo(dtype).max)
        x = jnp.clip(x, -largest, largest)
    return x.astype(dtype)


def _parts(stacks: tuple[jax.Array, ...], x: jax.Array) -> list[jax.Array]:
    """`[B, ...]` class by class."""
    if len(stacks) == 1:
        return [x]
    parts, start = [], 0
    for stack in stacks:
        parts.append(x[start : start + stack.shape[1]])
        start += stack.shape[1]
    return parts
