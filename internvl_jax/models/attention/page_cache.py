"""The cache of rows whose keys and values lie in pages: memory for the tokens that there are, not for those to come.

A page has room for the keys and values of a few tokens that follow one another. A row's table says which pages are its
own, in their order; rows that begin alike may have pages in common. Who has which page is the host's to know.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from internvl_jax.errors import InputError
from internvl_jax.models.attention import kernels
from internvl_jax.models.attention.attention import Window, attend
from internvl_jax.models.attention.cache import slots_seen
from internvl_jax.sharding import per_device, platform, shard

_POOL = ("batch", None, "act_heads", None)
_TABLE = ("batch", None)
_HEADS = ("batch", "act_heads", None, None)  # queries, keys or values


@functools.partial(jax.tree_util.register_dataclass, data_fields=["pool", "table"], meta_fields=["layers"])
@dataclasses.dataclass(frozen=True)
class PageCache:
    """Keys and values of every row, in pages. A token's slot is its position: slot s of a row is in its page s // size.

    All layers share one pool, and layer i has the pages from i x pages on: a part of a pool that is stacked over layers
    would be copied for the kernel in each of them.

    Where rows are spread over devices, every device has its rows' pages, as many as the others, and numbers its own.

    Attributes:
      pool: `[layers x pages, size, 2 M, H]`; each key/value head's key, and its value behind it.
      table: int32 `[B, most pages of a row]`, the numbers of every row's pages in the first layer; what stands behind
        the last of them is some page that there is. None between calls: the host says it at each.
      layers: how many.
    """

    pool: jax.Array
    table: jax.Array | None
    layers: int

    @classmethod
    def empty(cls, layers: int, kv_heads: int, width: int, pages: tuple[int, int], dtype: jnp.dtype) -> "PageCache":
        """A cache of nothing; `pages` are how many, and the tokens of each."""
        number, size = pages
        return cls(jnp.zeros((layers * number, size, 2 * kv_heads, width), dtype), None, layers)

    def of(self, table: jax.Array | None) -> "PageCache":
        """The same pages as a cache of the rows that have those of this table."""
        return dataclasses.replace(self, table=table)

    @property
    def reach(self) -> int:
        """How many slots all rows have together; attention reads those that have a token."""
        return len(self.pool) // self.layers * self.pool.shape[1]

    def within(self, reach: int) -> "PageCache":
        """The cache itself: no more is read than there is."""
        return self

    def laid(self) -> "PageCache":
        """The cache spread as rows are."""
        table = None if self.table is None else shard(self.table, *_TABLE)
        return dataclasses.replace(self, pool=shard(self.pool, *_POOL), table=table)

    def mask(self, segments_BT: jax.Array, positions_BT: jax.Array) -> jax.Array:
        """What the tokens of a call see follows from their positions. A row without any sees as little as possible."""
        nearest_1T = jnp.arange(positions_BT.shape[1], dtype=jnp.int32)[None]
        return jnp.where(segments_BT[:, :1] > 0, positions_BT, nearest_1T)

    def place(self, slots_BT: jax.Array, segments_BT: jax.Array, positions_BT: jax.Array) -> "PageCache":
        """The cache itself: that a slot is taken follows from positions."""
        return self

    def write(self, layer: jax.Array | int, k_BMTH: jax.Array, v_BMTH: jax.Array, slots_BT: jax.Array) -> "PageCache":
        """The cache with the keys and values of one layer in their slots; a slot beyond the last one takes nothing."""

        def put(
            pool: jax.Array,
            table: jax.Array,
            new: tuple[jax.Array, jax.Array],
            slots_BT: jax.Array,
            layer: jax.Array,
        ) -> jax.Array:
            size, (B, M, T, H) = pool.shape[1], new[0].shape
            columns_BT = slots_BT // size
            pages_BT = jnp.take_along_axis(table, jnp.minimum(columns_BT, table.shape[1] - 1), axis=1)
            pages_BT = jnp.where(columns_BT < table.shape[1], pages_BT + layer * self._pages(pool), len(pool))
            pairs = jnp.stack(new, axis=2).transpose(0, 3, 1, 2, 4).reshape(B, T, 2 * M, H)
            return pool.at[pages_BT, slots_BT % size].set(pairs.astype(pool.dtype), mode="drop")

        run = per_device(put, inputs=(_POOL, _TABLE, (_HEADS, _HEADS), ("batch", None), ()), output=_POOL)
        return dataclasses.replace(
            self, pool=run(self.pool, self._there, (k_BMTH, v_BMTH), slots_BT, jnp.asarray(layer))
        )

    def attend(
        self,
        layer: jax.Array | int,
        q_BNTH: jax.Array,
        mask: jax.Array,
        window: Window | None,
        sinks_N: jax.Array | None,
    ) -> jax.Array:
        """Attention to all that a layer has stored up to the queries' own positions.

        Raises:
          InputError: on TPU, what its kernel can't do, see `check_kernel`.
        """
        size, holds = (None, None) if window is None else window
        on_tpu = platform() == "tpu"
        if on_tpu:
            check_kernel(q_BNTH.shape[3], window is None and sinks_N is None)

        def on_device(
            q_BNTH: jax.Array,
            pool: jax.Array,
            table: jax.Array,
            positions_BT: jax.Array,
            layer: jax.Array,
            holds: jax.Array | None,
            sinks_N: jax.Array | None,
        ) -> jax.Array:
            table = table + layer * self._pages(pool)
            if on_tpu:
                return kernels.paged(q_BNTH, pool, positions_BT[:, -1] + 1, table)
            near = None if size is None else Window(size, holds)
            B, H = len(table), pool.shape[3]
            pairs = pool[table].reshape(B, -1, pool.shape[2] // 2, 2, H).transpose(3, 0, 2, 1, 4)
            seen = slots_seen(positions_BT, pairs.shape[3])
            return attend(q_BNTH, pairs[:1], pairs[1:], seen, near, 0, sinks_N)

        inputs = (_HEADS, _POOL, _TABLE, ("batch", None), (), (), ("act_heads",))
        run = per_device(on_device, inputs=inputs, output=_HEADS)
        return run(q_BNTH, self.pool, self._there, mask, jnp.asarray(layer), holds, sinks_N)

    @property
    def _there(self) -> jax.Array:
        if self.table is None:
            raise ValueError("a cache in pages was used and nobody had said which ones its rows have")
        return self.table

    def _pages(self, pool: jax.Array) -> int:
        """How many pages a layer has of a device's pool."""
        return len(pool) // self.layers


def check_kernel(width: int, plain: bool) -> None:
    """Whether the kernel that reads pages on TPU takes heads of such a width.

    Args:
      plain: whether attention has neither windows nor sinks.

    Raises:
      InputError: it doesn't.
    """
    if width % kernels.LANES or not plain:
        kind = f"heads of width {width}" if plain else "windows or sinks"
        raise InputError(
            f"the model has {kind}, and pages on TPU need heads of a multiple of {kernels.LANES} without windows and "
            "sinks; let rows have slots instead of pages"
        )
