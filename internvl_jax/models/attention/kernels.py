"""JAX's attention kernels, in which scores never leave the chip: splash and paged attention on TPU, cuDNN's on GPU."""

import contextlib
import functools
import math

import jax
import jax.numpy as jnp

from internvl_jax.models import scopes

# Below this many queries the scores of plain products are small.
LONG = 1024
# What remat policies may keep, by name.
# SAVED: the output of the causal kernel and the statistics of its softmax. (The vision tower's have no name: they are
# large, and cheap to compute again.) QKV: queries, keys and values of the language model. GATE, UP: the two inner
# products of its feed-forward layers.
SAVED, QKV, GATE, UP = "attention", "qkv", "gate", "up"
LANES = 128  # a vector register's
# The paged kernel takes so many pages and queries at a time, as its own table says of most shapes, and no more bytes.
_PAGES, _QUERIES, _PAGES_BYTES = 16, 32, 1 << 21
_PADDED = -1  # the segment of what fills up a block; no token is in it


def splash(
    q_BNTH: jax.Array,
    k_BMTH: jax.Array,
    v_BMTH: jax.Array,
    segments_BT: jax.Array | None,
    window: int | None,
    windowed: jax.Array | None,
    sinks_N: jax.Array | None,
    interpret: bool = False,
) -> jax.Array:
    """Softmax attention of the tokens of a row to each other, by queries that are scaled already.

    Padding (segment 0) attends to padding; its results are finite, and nobody reads them.

    Args:
      segments_BT: a token attends to itself and to earlier ones of its segment; without segments all attend to all.
      window: how many tokens a query sees, its own included; None: all.
      windowed: bool scalar, whether this layer has the window at all.
      sinks_N: a logit per head that takes part in the softmax, float32, or None.

    Returns:
      `[B, N, T, H]`.
    """
    T = q_BNTH.shape[2]
    unit = LANES if T <= 2 * LONG else LONG
    padding = -T % unit
    causal = segments_BT is not None
    if padding or causal:
        segments_BT = jnp.zeros((q_BNTH.shape[0], T), jnp.int32) if segments_BT is None else segments_BT
        segments_BT = jnp.pad(segments_BT, ((0, 0), (0, padding)), constant_values=_PADDED)
    q, k, v = (jnp.pad(part, ((0, 0), (0, 0), (0, padding), (0, 0))) for part in (q_BNTH, k_BMTH, v_BMTH))
    run = functools.partial(_splash, causal=causal, interpret=interpret)
    if window is None:
        out = run(q, k, v, segments_BT, sinks_N, window=None)
    else:
        # Whether a layer has the window is known only inside the scan: both kernels are there, one of them runs.
        branches = [functools.partial(run, window=size) for size in (window, None)]
        out = jax.lax.cond(windowed, *branches, q, k, v, segments_BT, sinks_N)
    return out[:, :, :T]


def _splash(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segments_BT: jax.Array | None,
    sinks_N: jax.Array | None,
    *,
    causal: bool,
    window: int | None,
    interpret: bool,
) -> jax.Array:
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as sk
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as sm

    N, T = q.shape[1:3]
    if window is not None:
        mask, largest = sm.LocalMask((T, T), (window - 1, 0), 0), max(2 * window, LANES)
    else:
        mask, largest = sm.CausalMask((T, T)) if causal else sm.FullMask((T, T)), LONG
    block = _divisor(T, largest)
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
    attention = sk.make_splash_mha_single_device(
        sm.MultiHeadMask([mask] * N),
        block_sizes=sizes,
        residual_checkpoint_name=SAVED if causal else None,
        interpret=interpret,
    )
    keys = (T + block) // 2 if causal else T
    if window is not None:
        keys = block * (1 + -(-(window - 1) // block))
    with jax.named_scope(scopes.keys_scope(min(keys, T))):
        if segments_BT is None:
            return jax.vmap(lambda q, k, v: attention(q, k, v, None, sinks_N))(q, k, v)
        ids = lambda segments_T: sk.SegmentIds(segments_T, segments_T)
        return jax.vmap(lambda q, k, v, s: attention(q, k, v, ids(s), sinks_N))(q, k, v, segments_BT)


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

    Segments are a mask of `[B, 1, T, T]`: JAX's interface to cuDNN has no other way to say them.
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
