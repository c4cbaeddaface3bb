"""The language model's layer: grouped heads with rotary positions, then a SwiGLU or experts.

Which biases, norms and sinks there are, and what stands in the feed-forward's place, is the family's to say
(`families`).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from internvl_jax.models.attention.attention import Mask, Window, attend
from internvl_jax.models.attention.caches import Cache
from internvl_jax.models.attention.kernels import GATE, MID, QKV, UP
from internvl_jax.models.bricks.moe import Routing
from internvl_jax.models.bricks.nn import Linear, RmsNorm, gated, identity, normal, zeros
from internvl_jax.models.bricks.rope import apply_rope
from internvl_jax.models.config import TextConfig
from internvl_jax.sharding import copies, param, shard


def head_norm(config: TextConfig, rngs: nnx.Rngs) -> RmsNorm:
    """A norm over the width of a head, one for all heads."""
    return RmsNorm(rngs, (config.head_width,), (None,), config.norm_eps)


def no_norm(config: TextConfig, rngs: nnx.Rngs) -> Callable[[jax.Array], jax.Array]:
    return identity


def head_sinks(config: TextConfig, rngs: nnx.Rngs) -> nnx.Param:
    """A logit per head that takes its share of the softmax and gives nothing."""
    return param(rngs, (config.heads,), ("heads",), zeros)


def no_sinks(config: TextConfig, rngs: nnx.Rngs) -> None:
    return None


class Attention(nnx.Module):
    """Grouped heads with rotary positions.

    Args:
      qkv_bias, out_bias: do the products before and after have biases?
      norm: `head_norm` or `no_norm`, of queries and keys.
      sinks: `head_sinks` or `no_sinks`.
    """

    def __init__(
        self,
        config: TextConfig,
        rngs: nnx.Rngs,
        *,
        qkv_bias: bool,
        out_bias: bool,
        norm: Callable,
        sinks: Callable,
    ):
        D, H = (config.width,), config.head_width
        heads, kv_heads, embed, init = ("heads", None), ("kv_heads", None), ("embed",), normal(config.init_std)
        self.q = Linear(rngs, (config.heads, H), D, (heads, embed), init, bias=qkv_bias)
        self.k = Linear(rngs, (config.kv_heads, H), D, (kv_heads, embed), init, bias=qkv_bias)
        self.v = Linear(rngs, (config.kv_heads, H), D, (kv_heads, embed), init, bias=qkv_bias)
        self.o = Linear(rngs, D, (config.heads, H), (embed, heads), init, bias=out_bias)
        self.q_norm, self.k_norm = norm(config, rngs), norm(config, rngs)
        self.sinks = sinks(config, rngs)

    def __call__(
        self,
        x_BTD: jax.Array,
        table: tuple[jax.Array, jax.Array],
        mask: Mask,
        window: Window | None,
        cache: Cache | None,
        index: jax.Array | int,
        slots_BT: jax.Array | None,
    ) -> tuple[jax.Array, Cache | None, tuple[jax.Array, jax.Array]]:
        heads_first = lambda x: x.transpose(0, 2, 1, 3)
        q_BTNH, k_BTMH, v_BTMH = (checkpoint_name(part(x_BTD), QKV) for part in (self.q, self.k, self.v))
        q_BNTH = apply_rope(heads_first(self.q_norm(q_BTNH)), table)
        k_BMTH = apply_rope(heads_first(self.k_norm(k_BTMH)), table)
        v_BMTH = heads_first(v_BTMH)
        k_BMTH, v_BMTH = (_for_all_devices(part) for part in (k_BMTH, v_BMTH))
        q_BNTH = shard(q_BNTH, "batch", "act_heads", "time", None)
        sinks_N = None if self.sinks is None else self.sinks[...]
        if cache is None:
            out_BNTH = attend(q_BNTH, k_BMTH, v_BMTH, mask, window, sinks_N=sinks_N)
        else:
            cache = cache.write(index, k_BMTH, v_BMTH, slots_BT)
            out_BNTH = cache.attend(index, q_BNTH, mask, window, sinks_N)
        return self.o(heads_first(out_BNTH)), cache, (k_BMTH, v_BMTH)


def _for_all_devices(x_BMTH: jax.Array) -> jax.Array:
    """Keys or values, each head as often as devices need that share the query heads it belongs to."""
    times = copies("act_heads", x_BMTH.shape[1])
    return x_BMTH if times == 1 else shard(jnp.repeat(x_BMTH, times, axis=1), "batch", "act_heads", "time", None)


class SwiGlu(nnx.Module):
    def __init__(self, config: TextConfig, rngs: nnx.Rngs):
        D, F, embed, mlp, init = (config.width,), (config.mlp,), ("embed",), ("mlp",), normal(config.init_std)
        self.gate = Linear(rngs, F, D, (mlp, embed), init, bias=False)
        self.up = Linear(rngs, F, D, (mlp, embed), init, bias=False)
        self.down = Linear(rngs, D, F, (embed, mlp), init, bias=False)

    def __call__(self, x_BTD: jax.Array, replay_BTK: None, index: jax.Array | int) -> tuple[jax.Array, None]:
        gate_BTF, up_BTF = checkpoint_name(self.gate(x_BTD), GATE), checkpoint_name(self.up(x_BTD), UP)
        return self.down(shard(gated(gate_BTF, up_BTF), "batch", "time", "act_mlp")), None


class Layer(nnx.Module):
    """Two halves, each with its norm before it and the input added after it.

    Args:
      attention, feed_forward: (config, rngs) -> the halves.
    """

    def __init__(self, config: TextConfig, rngs: nnx.Rngs, attention: Callable, feed_forward: Callable):
        self.attn_norm = RmsNorm(rngs, (config.width,), ("embed",), config.norm_eps)
        self.attn = attention(config, rngs)
        self.mlp_norm = RmsNorm(rngs, (config.width,), ("embed",), config.norm_eps)
        self.mlp = feed_forward(config, rngs)

    def __call__(
        self,
        x_BTD: jax.Array,
        table: tuple[jax.Array, jax.Array],
        mask: Mask,
        window: Window | None,
        cache: Cache | None,
        index: jax.Array | int,
        slots_BT: jax.Array | None,
        replay_BTK: jax.Array | None,
    ) -> tuple[jax.Array, Cache | None, tuple[jax.Array, jax.Array], Routing | None]:
        """One layer; returns its output, the cache with this layer written, this call's keys and values, and the
        routing (None without experts)."""
        out_BTD, cache, kv = self.attn(self.attn_norm(x_BTD), table, mask, window, cache, index, slots_BT)
        x_BTD = checkpoint_name(shard(x_BTD + out_BTD, "batch", "time", None), MID)
        out_BTD, routing = self.mlp(self.mlp_norm(x_BTD), replay_BTK, index)
        return shard(x_BTD + out_BTD, "batch", "time", None), cache, kv, routing
