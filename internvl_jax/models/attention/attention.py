"""Attention behind one signature: full or causal, packed, cached, windowed, grouped heads.

Heads stand before time (`q_BNTH`, `k_BMSH`): each head's keys are contiguous, which the products and the cache want.
"""

import functools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from internvl_jax import sharding
from internvl_jax.models.attention import kernels
from internvl_jax.models.attention.blocks import share
from internvl_jax.models.attention.segment_loops import KEYS, QUERIES, attend_in_loops

# Queries in a block: at most B x N x QUERY_BLOCK x S scores are held at once.
QUERY_BLOCK = 512
# On CPU scores beyond this many bytes (about its cache) are computed one key/value head at a time.
CACHED_BYTES = 1 << 23
# One query a row meets so many bytes of a layer's keys, or of a head's, with all heads together.
SMALL_BYTES, SMALL_HEAD_BYTES = 1 << 20, 1 << 14
# Queries in a block there. Where keys later than a block are left out, smaller blocks leave out more.
ORDERED_BLOCK, UNORDERED_BLOCK = 256, 2048
MASKED = -1e30  # finite: a row with nothing to attend to gives a mean, not NaN


class Window(NamedTuple):
    """How far back a query sees.

    Attributes:
      size: positions that it sees, its own included.
      holds: bool scalar, whether this layer has the window at all.
    """

    size: int
    holds: jax.Array


class Mask(NamedTuple):
    """Which keys a query may attend to: those of its own segment, not later, and inside the window.

    Segment 0 is padding (as a key it is never attended to). Positions restart in every segment.

    Attributes:
      ordered: keys and queries are the same tokens in the same order, so key s > t is never seen by query t and whole
        blocks of keys can be left out.
      skips: whether blocks of other segments are left out, too, where rows are long.
    """

    q_segments_BT: jax.Array
    q_positions_BT: jax.Array
    k_segments_BS: jax.Array
    k_positions_BS: jax.Array
    ordered: bool
    skips: bool = True

    @classmethod
    def within(cls, segments_BT: jax.Array, positions_BT: jax.Array, skips: bool = True) -> "Mask":
        """Tokens that attend to each other."""
        return cls(segments_BT, positions_BT, segments_BT, positions_BT, ordered=True, skips=skips)

    def block(self, start: int, stop: int, keys: int) -> "Mask":
        """The mask of queries start to stop against the first `keys` keys."""
        return Mask(
            self.q_segments_BT[:, start:stop],
            self.q_positions_BT[:, start:stop],
            self.k_segments_BS[:, :keys],
            self.k_positions_BS[:, :keys],
            self.ordered,
        )

    def allowed(self, window: Window | None) -> jax.Array:
        """bool `[B, T, S]`."""
        distance_BTS = self.q_positions_BT[:, :, None] - self.k_positions_BS[:, None, :]
        same_BTS = self.q_segments_BT[:, :, None] == self.k_segments_BS[:, None, :]
        allowed_BTS = same_BTS & (self.k_segments_BS[:, None, :] > 0) & (distance_BTS >= 0)
        return allowed_BTS if window is None else allowed_BTS & ((distance_BTS < window.size) | ~window.holds)


def attend(
    q_BNTH: jax.Array,
    k_BMSH: jax.Array,
    v_BMSH: jax.Array,
    mask: Mask | None,
    window: Window | None = None,
    layer: jax.Array | int | None = None,
    sinks_N: jax.Array | None = None,
) -> jax.Array:
    """Softmax attention, scores and softmax in float32, scaled by H**-0.5.

    Args:
      q_BNTH: queries; N is a multiple of M, head n reads key/value head n // (N / M).
      k_BMSH, v_BMSH: keys and values; where a `layer` is given, those of all layers, `[L, B, M, S, H]`, of which the
        first are read that the mask has columns for.
      mask: which keys a query may see; None: all of them (the vision tower).
      window: how far back a query sees; None: to the first key.
      sinks_N: a logit per head that takes part in the softmax and has no value (GPT-OSS).

    Returns:
      `[B, N, T, H]` in q's dtype.
    """
    q_BNTH = q_BNTH * q_BNTH.shape[3] ** -0.5
    T = q_BNTH.shape[2]
    if layer is None and T == k_BMSH.shape[2] and (T >= kernels.LONG or _parts(mask) > 1):
        return _by_device(q_BNTH, k_BMSH, v_BMSH, mask, window, sinks_N)
    return _by_products(q_BNTH, k_BMSH, v_BMSH, mask, window, layer, sinks_N)


def _parts(mask: Mask | None) -> int:
    """In how many parts the tokens of a row lie; those of a tile are never apart."""
    return 1 if mask is None else sharding.spread("time")


def row_unit(tokens: int, heads: int) -> int:
    """Of what the tokens of a row have to be a multiple, where they lie as `sharding.use` says, so that attention can
    take it.

    Args:
      tokens: about how many there are.
      heads: of the language model.
    """
    parts = sharding.spread("time")
    if _trades(heads // sharding.spread("act_heads"), parts) or sharding.platform() != "tpu" or tokens < kernels.LONG:
        return parts
    return math.lcm(kernels.unit(tokens), kernels.LANES * parts)


def left_out(segments_BT: jax.Array) -> jax.Array | None:
    """float32 scalar: of the blocks of keys that a causal layer without a window would meet in these rows, the share
    that it leaves out forward, since they hold other texts or padding only. None in short rows and on GPUs, where it
    leaves out none.
    """
    T, platform = segments_BT.shape[1], sharding.platform()
    if T < kernels.LONG or platform not in ("tpu", "cpu"):
        return None
    q_block, k_block = (kernels.block_of(T),) * 2 if platform == "tpu" else (QUERIES, KEYS)
    padded_BT = jnp.pad(segments_BT, ((0, 0), (0, -T % math.lcm(q_block, k_block))))
    return 1 - share(padded_BT, q_block, k_block)


def _trades(heads: int, parts: int) -> bool:
    """Whether devices that have parts of a row, and so many heads each, trade tokens for heads."""
    return heads % parts == 0


def _by_device(
    q_BNTH: jax.Array,
    k_BMTH: jax.Array,
    v_BMTH: jax.Array,
    mask: Mask | None,
    window: Window | None,
    sinks_N: jax.Array | None,
) -> jax.Array:
    """Attention of whole rows, every device its own rows and heads: the compiler can't partition kernels and loops.

    Where the tokens of a row lie on several devices, these trade them for heads; where the heads don't divide, they
    gather keys and values.
    """
    # The vision tower's heads stay whole: 25 of them divide by no power of two.
    rows, heads, time = ("tiles", None, None) if mask is None else ("batch", "act_heads", "time")
    size, holds = (None, None) if window is None else window
    segments_BT, positions_BT = (None, None) if mask is None else (mask.q_segments_BT, mask.q_positions_BT)
    skips, parts = mask is not None and mask.skips, _parts(mask)
    along_heads, along_time = (rows, heads, time, None), ("batch", "time")

    def on_device(
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        segments_BT: jax.Array | None,
        positions_BT: jax.Array | None,
        holds: jax.Array | None,
        sinks_N: jax.Array | None,
    ) -> jax.Array:
        near = None if size is None else Window(size, holds)
        marks = segments_BT, positions_BT
        if parts == 1:
            own = None if mask is None else Mask.within(*marks, skips)
            return _whole_rows(q, k, v, own, near, sinks_N)
        everything = sharding.gather_time(segments_BT, 1), sharding.gather_time(positions_BT, 1)
        if _trades(q.shape[1], parts):
            times = math.lcm(k.shape[1], parts) // k.shape[1]
            k, v = (jnp.repeat(part, times, axis=1) for part in (k, v))
            own = Mask.within(*everything, skips)
            sinks_N = None if sinks_N is None else sharding.own_share(sinks_N)
            q, k, v = map(sharding.heads_for_time, (q, k, v))
            return sharding.time_for_heads(_whole_rows(q, k, v, own, near, sinks_N))
        k, v = (sharding.gather_time(part, 2) for part in (k, v))
        if sharding.platform() == "tpu" and k.shape[2] >= kernels.LONG:
            part = kernels.QueryPart(sharding.time_part(), parts)
            return kernels.splash(q, k, v, everything[0], size, holds, sinks_N, kernels.Plan(skips, part))
        return _by_products(q, k, v, Mask(*marks, *everything, False), near, None, sinks_N)

    run = sharding.per_device(
        on_device,
        inputs=(along_heads, along_heads, along_heads, along_time, along_time, (), (heads,)),
        output=along_heads,
    )
    sinks_N = None if sinks_N is None else sinks_N.astype(jnp.float32)
    return run(q_BNTH, k_BMTH, v_BMTH, segments_BT, positions_BT, holds, sinks_N)


def _whole_rows(
    q_BNTH: jax.Array,
    k_BMTH: jax.Array,
    v_BMTH: jax.Array,
    mask: Mask | None,
    window: Window | None,
    sinks_N: jax.Array | None,
) -> jax.Array:
    """Attention of a device's whole rows, by what fits its platform."""
    B, N, T, H = q_BNTH.shape
    size, holds = (None, None) if window is None else window
    segments_BT = None if mask is None else mask.q_segments_BT
    platform = sharding.platform() if T >= kernels.LONG else None
    if platform == "tpu":
        return kernels.splash(
            q_BNTH, k_BMTH, v_BMTH, segments_BT, size, holds, sinks_N, kernels.Plan(mask is not None and mask.skips)
        )
    if platform == "gpu" and window is None and sinks_N is None and kernels.suits_cudnn(q_BNTH):
        return kernels.cudnn(q_BNTH, k_BMTH, v_BMTH, segments_BT)
    if platform == "cpu" and mask is not None and mask.ordered and mask.skips:
        M = k_BMTH.shape[1]
        sinks_MR = None if sinks_N is None else sinks_N.astype(jnp.float32).reshape(M, N // M)
        q_BMRTH, marks = q_BNTH.reshape(B, M, N // M, T, H), (segments_BT, mask.q_positions_BT)
        return attend_in_loops(q_BMRTH, k_BMTH, v_BMTH, *marks, size, holds, sinks_MR).reshape(B, N, T, H)
    return _by_products(q_BNTH, k_BMTH, v_BMTH, mask, window, None, sinks_N)


def _by_products(
    q_BNTH: jax.Array,
    k_BMSH: jax.Array,
    v_BMSH: jax.Array,
    mask: Mask | None,
    window: Window | None,
    layer: jax.Array | int | None,
    sinks_N: jax.Array | None,
) -> jax.Array:
    """Attention by plain products, as `attend`, of queries that are scaled already."""
    B, N, T, H = q_BNTH.shape
    M, S = k_BMSH.shape[-3:-1] if layer is None else (k_BMSH.shape[-3], mask.k_positions_BS.shape[1])
    q_BMRTH = q_BNTH.reshape(B, M, N // M, T, H)
    sinks_MR = None if sinks_N is None else jnp.asarray(sinks_N, jnp.float32).reshape(M, N // M)
    settings = {"mask": mask, "window": window, "sinks_MR": sinks_MR}

    def by_layer(function: Callable) -> Callable:
        part = lambda stack: stack if layer is None else stack[layer][:, :, :S]
        return lambda q, k, v: function(q, _met(part(k), q.dtype), _met(part(v), q.dtype), **settings)

    together = by_layer(_together)
    on_cpu: Callable | None = None
    if layer is not None and T == 1:
        # Of a small part of the cache, or of short rows, all heads together take half to nine tenths of the time: a
        # loop's turns cost more than a copy.
        if B * M * S * H * 4 > SMALL_BYTES and S * H * 4 > SMALL_HEAD_BYTES:
            on_cpu = functools.partial(_one_query, layer=layer, **settings)
    elif B * N * T * S * 4 > CACHED_BYTES:
        on_cpu = by_layer(_head_by_head)
    if on_cpu is None:
        out_BMRTH = together(q_BMRTH, k_BMSH, v_BMSH)
    else:
        out_BMRTH = lax.platform_dependent(q_BMRTH, k_BMSH, v_BMSH, cpu=on_cpu, default=together)
    return out_BMRTH.reshape(B, N, T, H)


def _met(kept: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Keys or values as products take them: those that are kept in 8 bits in the dtype of queries."""
    return kept.astype(dtype) if kept.dtype.itemsize == 1 else kept


def _together(
    q_BMRTH: jax.Array,
    k_BMSH: jax.Array,
    v_BMSH: jax.Array,
    mask: Mask | None,
    window: Window | None,
    sinks_MR: jax.Array | None,
) -> jax.Array:
    """All heads of a block of queries at a time."""
    sinks = None if sinks_MR is None else sinks_MR[None, :, :, None, None]

    # As in `_queries`, scores are not kept for the backward pass.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def block(
        q_BMRTH: jax.Array, k_BMSH: jax.Array, v_BMSH: jax.Array, allowed_BTS: jax.Array | None, sinks: jax.Array | None
    ) -> jax.Array:
        scores = jnp.einsum("bmrth,bmsh->bmrts", q_BMRTH, k_BMSH, preferred_element_type=jnp.float32)
        if allowed_BTS is not None:
            scores = jnp.where(allowed_BTS[:, None, None], scores, MASKED)
        weights, total = _exponentials(scores, sinks)
        weights = weights.astype(q_BMRTH.dtype)
        out = jnp.einsum("bmrts,bmsh->bmrth", weights, v_BMSH, preferred_element_type=jnp.float32)
        return (out / total).astype(q_BMRTH.dtype)

    blocks = []
    for start, stop, keys in _blocks(q_BMRTH.shape[3], k_BMSH.shape[2], mask, QUERY_BLOCK):
        allowed_BTS = None if mask is None else mask.block(start, stop, keys).allowed(window)
        blocks.append(block(q_BMRTH[:, :, :, start:stop], k_BMSH[:, :, :keys], v_BMSH[:, :, :keys], allowed_BTS, sinks))
    return jnp.concatenate(blocks, axis=3)


def _head_by_head(
    q_BMRTH: jax.Array,
    k_BMSH: jax.Array,
    v_BMSH: jax.Array,
    mask: Mask | None,
    window: Window | None,
    sinks_MR: jax.Array | None,
) -> jax.Array:
    """One key/value head of one row at a time, whose scores stay in the CPU's cache.

    On two cores 3 to 5 times as fast as `_together` at the vision tower's 1,025 patches (2026-11, jax 0.10.2).
    """
    T, S = q_BMRTH.shape[3], k_BMSH.shape[2]
    blocks = list(_blocks(T, S, mask, ORDERED_BLOCK if mask is not None and mask.ordered else UNORDERED_BLOCK))

    def one_row(inputs: tuple) -> jax.Array:
        q_MRTH, k_MSH, v_MSH, allowed = inputs

        def one_head(inputs: tuple) -> jax.Array:
            q_RTH, k_SH, v_SH, sinks_R = inputs
            outs = [
                _queries(q_RTH[:, start:stop], k_SH[:keys], v_SH[:keys], part, sinks_R)
                for (start, stop, keys), part in zip(blocks, allowed, strict=True)
            ]
            return jnp.concatenate(outs, axis=1)

        return lax.map(one_head, (q_MRTH, k_MSH, v_MSH, sinks_MR))

    allowed = [None if mask is None else mask.block(*block).allowed(window) for block in blocks]
    return lax.map(one_row, (q_BMRTH, k_BMSH, v_BMSH, allowed))


# The backward pass computes the scores again: keeping them would cost B x N x T x S floats a layer.
@jax.checkpoint
def _queries(
    q_RTH: jax.Array, k_SH: jax.Array, v_SH: jax.Array, allowed_TS: jax.Array | None, sinks_R: jax.Array | None
) -> jax.Array:
    scores_RTS = jnp.einsum("rth,sh->rts", q_RTH, k_SH, preferred_element_type=jnp.float32)
    if allowed_TS is not None:
        scores_RTS = jnp.where(allowed_TS[None], scores_RTS, MASKED)
    weights, total = _exponentials(scores_RTS, None if sinks_R is None else sinks_R[:, None, None])
    out_RTH = jnp.einsum("rts,sh->rth", weights.astype(q_RTH.dtype), v_SH, preferred_element_type=jnp.float32)
    return (out_RTH / total).astype(q_RTH.dtype)


def _one_query(
    q_BMR1H: jax.Array,
    k_LBMSH: jax.Array,
    v_LBMSH: jax.Array,
    mask: Mask,
    window: Window | None,
    sinks_MR: jax.Array | None,
    layer: jax.Array | int,
) -> jax.Array:
    """One query a row against a layer of stacked keys and values, which are read where they lie: a slice is a copy.

    Products of a matrix and a vector, one per query head: XLA's path on CPU for those reads the keys at full speed.
    """
    B, M, R, _, H = q_BMR1H.shape
    k, v = (stack.reshape(-1, *stack.shape[3:]) for stack in (k_LBMSH, v_LBMSH))
    allowed_B1S = mask.allowed(window)

    def one_head(inputs: tuple) -> jax.Array:
        number, q_R1H = inputs
        size = 1, allowed_B1S.shape[2], H
        near = (lax.dynamic_slice(part, (layer * B * M + number, 0, 0), size)[0] for part in (k, v))
        k_SH, v_SH = (_met(part, q_R1H.dtype) for part in near)
        allowed_1S = lax.dynamic_index_in_dim(allowed_B1S, number // M, keepdims=False)
        sinks_R1 = [None] * R if sinks_MR is None else sinks_MR[number % M][:, None]
        heads = zip(q_R1H, sinks_R1, strict=True)
        return jnp.stack([_queries(q_1H[None], k_SH, v_SH, allowed_1S, sink_1)[0] for q_1H, sink_1 in heads])

    return lax.map(one_head, (jnp.arange(B * M), q_BMR1H.reshape(B * M, R, 1, H))).reshape(B, M, R, 1, H)


def _blocks(T: int, S: int, mask: Mask | None, size: int) -> Iterator[tuple[int, int, int]]:
    """For every block of queries: the first, the end, and how many keys these queries may see."""
    for start in range(0, T, size):
        stop = min(start + size, T)
        yield start, stop, stop if mask is not None and mask.ordered else S


def _exponentials(scores: jax.Array, sinks: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """The softmax's numerators and denominator. Who divides after the product with the values saves a pass over the
    scores.
    """
    largest = jnp.max(scores, axis=-1, keepdims=True)
    if sinks is not None:
        largest = jnp.maximum(largest, sinks)
    largest = lax.stop_gradient(largest)
    weights = jnp.exp(scores - largest)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    return weights, total if sinks is None else total + jnp.exp(sinks - largest)
