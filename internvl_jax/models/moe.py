"""Mixture of experts: a router gives every token a few experts, whose SwiGLUs are summed by the router's weights.

Tokens are sorted by expert and multiplied group by group (`jax.lax.ragged_dot`): none is dropped.

Source: Qwen3-MoE (softmax over all experts, the chosen ones renormalised, which is the softmax over the chosen logits).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from internvl_jax.models.config import TextConfig
from internvl_jax.models.nn import Linear, normal, product, silu
from internvl_jax.sharding import param, shard

# lhs[rows, in] . rhs[group, out, in], rows ragged.
_BY_GROUP = lax.RaggedDotDimensionNumbers(
    dot_dimension_numbers=(((1,), (2,)), ((), ())), lhs_ragged_dimensions=[0], rhs_group_dimensions=[0]
)


class Moe(nnx.Module):
    """`[B, T, D] -> [B, T, D]`, with the router's logits `[B, T, E]` in float32."""

    def __init__(self, config: TextConfig, rngs: nnx.Rngs):
        D, F, E, init = config.width, config.mlp, config.moe.experts, normal(config.init_std)
        self.per_token = config.moe.per_token
        self.router = Linear(rngs, (E,), (D,), ((None,), ("embed",)), init, bias=False)
        self.gate = _Experts(rngs, (E, F, D), ("expert", "mlp", "embed"), init)
        self.up = _Experts(rngs, (E, F, D), ("expert", "mlp", "embed"), init)
        self.down = _Experts(rngs, (E, D, F), ("expert", "embed", "mlp"), init)

    def __call__(self, x_BTD: jax.Array) -> tuple[jax.Array, jax.Array]:
        B, T, D = x_BTD.shape
        router = self.router.weight[...].astype(jnp.float32)
        logits_BTE = product(x_BTD.astype(jnp.float32), router)
        chosen, experts = lax.top_k(logits_BTE.reshape(B * T, -1), self.per_token)
        weights = jax.nn.softmax(chosen, axis=-1)

        order = jnp.argsort(experts.reshape(-1), stable=True)  # places (token, choice), by expert
        tokens = order // self.per_token
        sizes = jnp.bincount(experts.reshape(-1), length=router.shape[0]).astype(jnp.int32)
        x = x_BTD.reshape(B * T, D)[tokens]
        hidden = silu(self.gate(x, sizes)) * self.up(x, sizes)
        y = self.down(hidden, sizes).astype(jnp.float32)
        out = jnp.zeros((B * T, D), jnp.float32).at[tokens].add(y * weights.reshape(-1)[order][:, None])
        return shard(out.astype(x_BTD.dtype).reshape(B, T, D), "batch", "time", None), logits_BTE


class _Experts(nnx.Module):
    """A linear layer per expert: `[rows, in] -> [rows, out]`, the rows of one expert after those of another."""

    def __init__(self, rngs: nnx.Rngs, shape_EOI: tuple[int, int, int], axes: tuple[str, str, str], init: Callable):
        self.weight = param(rngs, shape_EOI, axes, init)

    def __call__(self, x: jax.Array, sizes_E: jax.Array) -> jax.Array:
        return lax.ragged_dot_general(x, self.weight[...].astype(x.dtype), sizes_E, _BY_GROUP)
