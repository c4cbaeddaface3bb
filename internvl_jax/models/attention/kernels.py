"""JAX's attention kernels, in which scores never leave the chip: splash and paged attention on TPU, cuDNN's on GPU."""

import contextlib
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from internvl_jax.models import scopes
from internvl_jax.models.attention import blocks

# Below this many queries the scores of plain products are small.
LONG = 1024
# What remat policies may keep, by name.
# SAVED: the output of the causal kernel and the statistics of its softmax. (The vision tower's have no name: they are
# large, and cheap to compute again.) QKV: queries, keys and values of the language model. GATE, UP: the two inner
# products of its feed-forward layers. MID: what its layers have between attention and feed-forward layer. BRANCH: what
# the feed-forward layers of the tower return.
SAVED, QKV, GATE, UP, MID, BRANCH = "attention", "qkv", "gate", "up", "mid", "branch"
LANES = 128  # a vector register's
# The paged kernel takes so many pages and queries at a time, as its own table says of most shapes, and no more bytes.
_PAGES, _QUERIES, _PAGES_BYTES = 16, 32, 1 << 21
_PADDED = -1  # the segment of what fills up a block; no token is in it


class QueryPart(NamedTuple):
    """Which queries a device has of a row: part `number` of `parts` equal ones."""

    number: jax.Array
    parts: int


class Plan(NamedTuple):
    """How `splash` goes about it.

    Attributes:
      skips: whether blocks of keys are left out in which a block of queries has none of its segments. No value of a
        token differs for it, nor any gradient.
      part: which queries are there; None: all.
      interpret: whether the kernel is interpreted, for tests on CPU.
    """

    skips: bool = True
    part: QueryPart | None = None
    interpret: bool = False


_PLAN = Plan()


def unit(tokens: int) -> int:
    """Of what `splash` makes rows of so many tokens a multiple."""
    return LANES if tokens <= 2 * LONG else LONG


def block_of(tokens: int) -> int:
    """How many queries, and keys, `splash` takes at a time forward of whole rows of so many tokens."""
    return _divisor(tokens + -tokens % unit(tokens), LONG)


def splash(
    q_BNTH: jax.Array,
    k_BMTH: jax.Array,
    v_BMTH: jax.Array,
    segments_BT: jax.Array | None,
    window: int | None,
    windowed: jax.Array | None,
    sinks_N: jax.Array | None,
    plan: Plan = _PLAN,
) -> jax.Array:
    """Softmax attention of the tokens of a row to each other, by queries that are scaled already.

    Padding (segment 0) attends to padding; its results are finite, and nobody reads them.

    Args:
      q_BNTH: queries: of all tokens, or those of a `part`.
      segments_BT: a token attends to itself and to earlier ones of its segment; without segments all attend to all.
      window: how many tokens a query sees, its own included; None: all.
      windowed: bool scalar, whether this layer has the window at all.
      sinks_N: a logit per head that takes part in the softmax, float32, or None.

    Returns:
      `[B, N, T, H]`.

    Raises:
      ValueError: a part of rows that can't be cut so.
    """
    T = k_BMTH.shape[2]
    padding = -T % unit(T)
    causal = segments_BT is not None
    if plan.part is not None and (padding or q_BNTH.shape[2] % LANES or not causal):
        raise ValueError(f"queries of {q_BNTH.shape[2]} of {T} tokens; make them multiples of {LANES} and {unit(T)}")
    if padding or causal:
        segments_BT = jnp.zeros((q_BNTH.shape[0], T), jnp.int32) if segments_BT is None else segments_BT
        segments_BT = jnp.pad(segments_BT, ((0, 0), (0, padding)), constant_values=_PADDED)
    q, k, v = (jnp.pad(x, ((0, 0), (0, 0), (0, padding), (0, 0))) for x in (q_BNTH, k_BMTH, v_BMTH))
    run = functools.partial(_splash, causal=causal, plan=plan)
    if window is None:
        out = run(q, k, v, segments_BT, sinks_N, window=None)
    else:
        # Whether a layer has the window is known only inside the scan: both kernels are there, one of them runs.
        branches = [functools.partial(run, window=size) for size in (window, None)]
        out = jax.lax.cond(windowed, *branches, q, k, v, segments_BT, sinks_N)
    return out[:, :, : q_BNTH.shape[2]]


def _splash(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segments_BT: jax.Array | None,
    sinks_N: jax.Array | None,
    *,
    causal: bool,
    window: int | None,
    plan: Plan,
) -> jax.Array:
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as sk
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as sm

    N, T = q.shape[1], k.shape[2]
    part = plan.part
    shards = 1 if part is None else part.parts
    if window is not None:
        mask, largest = sm.LocalMask((T, T), (window - 1, 0), 0, shards), max(2 * window, LANES)
    else:
        mask, largest = sm.CausalMask((T, T), 0, shards) if causal else sm.FullMask((T, T)), LONG
    block = _divisor(T // shards, largest)
    # One backward kernel computes the scores once instead of twice, but writes dq once per block of keys: wide blocks,
    # and two kernels where a window wants small ones.
    fused, wide = window is None, _divisor(T, 2 * largest)
    sizes = sk.BlockSizes(
        block_q=block,
        block_kv=block,
        block_kv_compute=_divisor(block, 512),
        block_q_dkv=block,
        block_kv_dkv=wide if fused else block,
        block_kv_dkv_compute=_divisor(wide if fused else block, 512),
        block_q_dq=None if fused else block,
        block_kv_dq=None if fused else block,
        use_fused_bwd_kernel=fused,
    )
    attention = sk.make_splash_mha(
        sm.MultiHeadMask([mask] * N),
        head_shards=1,
        q_seq_shards=shards,
        block_sizes=sizes,
        residual_checkpoint_name=SAVED if causal else None,
        interpret=plan.interpret,
    )
    keys = (T + block) // 2 if causal else T
    if window is not None:
        keys = block * (1 + -(-(window - 1) // block))
    skips = plan.skips and causal
    walk = scopes.Walk(T, block, block, block, sizes.block_kv_dkv, window or 0) if skips else None
    with jax.named_scope(scopes.keys_scope(min(keys, T), walk)):
        if segments_BT is None:
            return jax.vmap(lambda q, k, v: attention(q, k, v, None, sinks_N))(q, k, v)
        start, length = (0, T) if part is None else (part.number * q.shape[2], q.shape[2])
        if part is not None:
            attention = _of_part(attention, part)

        # All tokens of a tile see each other: there is no block of which nothing is needed.
        def row(q: jax.Array, k: jax.Array, v: jax.Array, segments_T: jax.Array) -> jax.Array:
            own_T = jax.lax.dynamic_slice_in_dim(segments_T, start, length)
            run = _leaving_out(attention, own_T, segments_T, start) if skips else attention
            return run(q, k, v, sk.SegmentIds(own_T, segments_T), sinks_N)

        return jax.vmap(row)(q, k, v, segments_BT)


def _of_part(kernel: Any, part: QueryPart) -> Any:
    """Of a kernel made for queries in several parts that of one part: its own rows of every table."""

    def own(table: jax.Array, axis: int) -> jax.Array:
        size = table.shape[axis] // part.parts
        return jax.lax.dynamic_slice_in_dim(table, part.number * size, size, axis)

    def cut(info: Any) -> Any:
        next_blocks, kinds = own(info.data_next, 1), own(info.block_mask, 1)
        return info._replace(data_next=next_blocks, block_mask=kinds, q_sequence=own(info.q_sequence, 0))

    return _with_tables(kernel, cut, cut)


def _leaving_out(kernel: Any, q_segments_T: jax.Array, k_segments_S: jax.Array, start: jax.Array | int) -> Any:
    """The kernel without the blocks that `blocks.meeting` has none of.

    Which blocks it runs and which it fetches next are two tables of integers, `block_mask` (0 leaves a block out) and
    `data_next`. They are arguments of the compiled kernel, so they may be computed here; those that it is made with are
    of the causal mask or the window alone.
    """
    sizes = kernel.kwargs["block_sizes"]

    def replace(info: Any, met: jax.Array, keys_inside: bool) -> Any:
        indices = info.data_next[0].astype(jnp.int32)
        outer, inner = (jnp.arange(size, dtype=jnp.int32) for size in indices.shape)
        # The walk through the forward's grid has keys inside, and the table the keys' blocks; the backward's of keys
        # and values has queries inside, and the queries' blocks.
        runs = met[outer[:, None], indices] if keys_inside else met[indices, inner[None]]
        runs &= info.block_mask[0] > 0
        turned = (lambda x: x) if keys_inside else jnp.transpose
        steps = blocks.ahead(turned(runs), turned(indices))
        kinds = turned(steps.runs)[None].astype(info.block_mask.dtype) * info.block_mask
        return info._replace(data_next=turned(steps.fetched)[None].astype(info.data_next.dtype), block_mask=kinds)

    def met(q_block: int, k_block: int) -> jax.Array:
        return blocks.meeting(q_segments_T, k_segments_S, q_block, k_block, start)

    by_query = lambda info: replace(info, met(sizes.block_q, sizes.block_kv), True)
    by_key = lambda info: replace(info, met(sizes.block_q_dkv, sizes.block_kv_dkv), False)
    return _with_tables(kernel, by_query, by_key)


def _with_tables(kernel: Any, by_query: Callable, by_key: Callable) -> Any:
    """The kernel with other tables: of its passes over queries (forward, and backward for queries where that is a pass
    of its own, in blocks of the same sizes), and of its pass over keys.
    """
    queries = None if kernel.dq_mask_info is None else by_query(kernel.dq_mask_info)
    return type(kernel)(by_query(kernel.fwd_mask_info), queries, by_key(kernel.dkv_mask_info), **kernel.kwargs)


def paged(q_BNTH: jax.Array, pool: jax.Array, lengths_B: jax.Array, table: jax.Array) -> jax.Array:
    """Softmax attention of the last T tokens of every row to all of its tokens up to their own, on TPU.

    Args:
      q_BNTH: queries, not scaled.
      pool: pages, as `PageCache` has them.
      lengths_B: int32, how many tokens a row has with these, T or more.
      table: int32 `[B, most pages of a row]`, the pages of every row.

    Returns:
      `[B, N, T, H]`.
    """
    from jax.experimental.pallas.ops.tpu import ragged_paged_attention as rpa

    (B, N, T, H), size, columns = q_BNTH.shape, pool.shape[1], table.shape[1]
    fitting = _PAGES_BYTES // (math.prod(pool.shape[1:]) * pool.dtype.itemsize)
    # Of half-precision numbers the kernel knows no other products, whatever is asked for.
    exact = q_BNTH.dtype == jnp.float32
    precision = contextlib.nullcontext() if exact else jax.default_matmul_precision("default")
    with jax.named_scope(scopes.keys_scope(columns * size)), precision:
        out = rpa.ragged_paged_attention(
            q_BNTH.transpose(0, 2, 1, 3).reshape(B * T, N, H),
            pool,
            lengths_B,
            table,
            jnp.arange(B + 1, dtype=jnp.int32) * T,
            jnp.full(1, B, jnp.int32),
            sm_scale=H**-0.5,
            num_kv_pages_per_block=max(1, min(_PAGES, fitting, columns)),
            num_queries_per_block=min(_QUERIES, B * T),
        )
    return out.reshape(B, T, N, H).transpose(0, 2, 1, 3)


def suits_cudnn(q_BNTH: jax.Array) -> bool:
    """Whether cuDNN takes such queries (jax 0.10: half precision, a head's width at most 128 and a multiple of 8)."""
    H = q_BNTH.shape[3]
    return q_BNTH.dtype in (jnp.bfloat16, jnp.float16) and H % 8 == 0 and H <= 128


def cudnn(
    q_BNTH: jax.Array,
    k_BMTH: jax.Array,
    v_BMTH: jax.Array,
    segments_BT: jax.Array | None,
    implementation: str = "cudnn",
) -> jax.Array:
    """What `splash` returns without window and sinks, which cuDNN doesn't know.

    Segments are a mask of `[B, 1, T, T]`: JAX's interface to cuDNN has no other way to say them. (Below it JAX 0.10 can
    say where segments begin, on Hopper, but takes the queries' stride for that of the keys: wrong where heads share a
    key/value head.)
    """
    B, _, T, _ = q_BNTH.shape
    padding = -T % 64
    q, k, v = (
        jnp.pad(part.transpose(0, 2, 1, 3), ((0, 0), (0, padding), (0, 0), (0, 0))) for part in (q_BNTH, k_BMTH, v_BMTH)
    )
    if segments_BT is None:
        lengths_B = jnp.full((B,), T, jnp.int32)
        limits = {"query_seq_lengths": lengths_B, "key_value_seq_lengths": lengths_B}
    else:
        segments_BT = jnp.pad(segments_BT, ((0, 0), (0, padding)), constant_values=_PADDED)
        limits = {"mask": (segments_BT[:, :, None] == segments_BT[:, None])[:, None], "is_causal": True}
    out = jax.nn.dot_product_attention(q, k, v, scale=1.0, implementation=implementation, **limits)
    return out[:, :T].transpose(0, 2, 1, 3)


def _divisor(size: int, largest: int) -> int:
    """The largest multiple of 128 that divides `size`, a multiple of 128, and is not larger than `largest`."""
    return max(part for part in range(LANES, max(LANES, min(size, largest)) + 1, LANES) if size % part == 0)
