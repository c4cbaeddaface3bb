"""Mixture of experts: a router gives every token a few experts, whose outputs are summed by the router's weights.

`dispatch` brings tokens to their experts, which multiply them group by group (`Weight.grouped`).

Source: Qwen3-MoE (softmax over all experts, the chosen ones renormalised, which is the softmax over the chosen
logits) and GPT-OSS (softmax over the chosen logits), whose experts differ.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from internvl_jax.models.bricks.dispatch import choose, dispatch
from internvl_jax.models.bricks.grouped import Groups
from internvl_jax.models.bricks.nn import Linear, gated, normal, zeros
from internvl_jax.models.bricks.weight import make_weight
from internvl_jax.models.config import TextConfig
from internvl_jax.sharding import param, shard

# The gate and the linear half of GPT-OSS's experts.
_LIMIT, _STEEPNESS = 7.0, 1.702


class Routing(NamedTuple):
    """What a router decided.

    Attributes:
      logits_BTE: the router's logits, float32.
      experts_BTK: the experts that the tokens went to.
      own_BTK: the experts that the router itself chooses, best first; other ones only where a choice was replayed.
      balanced_BTE: logits whose softmax the load-balancing loss is computed from.
    """

    logits_BTE: jax.Array
    experts_BTK: jax.Array
    own_BTK: jax.Array
    balanced_BTE: jax.Array


class Load(NamedTuple):
    """How the tokens of a row used the experts: sums that a load-balancing loss is made of.

    Attributes:
      choices_BE: how many tokens went to the expert.
      probabilities_BE: the tokens' probabilities of the expert, summed.
    """

    choices_BE: jax.Array
    probabilities_BE: jax.Array


def expert_load(routing: Routing, mask_BT: jax.Array) -> Load:
    """The load of one layer; only tokens under the mask count."""
    probabilities_BTE = jax.nn.softmax(routing.balanced_BTE, axis=-1)
    choices_BTE = jnp.sum(jax.nn.one_hot(routing.experts_BTK, probabilities_BTE.shape[-1]), axis=2)
    return Load(*(jnp.sum(part * mask_BT[:, :, None], axis=1) for part in (choices_BTE, probabilities_BTE)))


def router_logits(logits_BTE: jax.Array, experts_BTK: jax.Array, weights_BTK: jax.Array) -> jax.Array:
    """The router's own logits, of which Qwen3's balance loss is taken."""
    return logits_BTE


def chosen_weights(logits_BTE: jax.Array, experts_BTK: jax.Array, weights_BTK: jax.Array) -> jax.Array:
    """The weights of the chosen experts, 0 elsewhere.

    The release trained GPT-OSS with transformers 4.55, whose balance loss takes these for logits: its coefficient of
    0.9 belongs to so flat a loss.
    """
    chosen_BTKE = jax.nn.one_hot(experts_BTK, logits_BTE.shape[-1])
    return jnp.sum(chosen_BTKE * weights_BTK[..., None], axis=2)


class Moe(nnx.Module):
    """`[B, T, D] -> [B, T, D]`, with the routing that led there.

    Args:
      experts: the class of the experts.
      router_bias: does the router have biases?
      balanced: (logits_BTE, experts_BTK, weights_BTK) -> `Routing.balanced_BTE`.
    """

    def __init__(self, config: TextConfig, rngs: nnx.Rngs, *, experts: Callable, router_bias: bool, balanced: Callable):
        init, axes = normal(config.init_std), ((None,), ("embed",))
        self.per_token = config.moe.per_token
        self.router = Linear(rngs, (config.moe.experts,), (config.width,), axes, init, bias=router_bias)
        self.experts = experts(config, rngs)
        self.balanced = balanced

    def __call__(
        self, x_BTD: jax.Array, replay_BTK: jax.Array | None = None, index: jax.Array | int = 0
    ) -> tuple[jax.Array, Routing]:
        """The layer's output and its routing.

        Args:
          replay_BTK: experts to take instead of the router's own, with the weights that the router gives them now, so
            that the gradient reaches it; negative where none were noted.
          index: the number of the layer, where the experts' parameters are those of all layers.
        """
        logits_BTE = self.router(x_BTD.astype(jnp.float32))
        chosen_BTK, own_BTK = choose(logits_BTE, self.per_token)
        experts_BTK = own_BTK
        if replay_BTK is not None:
            experts_BTK = jnp.where(replay_BTK >= 0, replay_BTK, own_BTK).astype(own_BTK.dtype)
            chosen_BTK = jnp.take_along_axis(logits_BTE, experts_BTK, axis=-1)
        weights_BTK = jax.nn.softmax(chosen_BTK, axis=-1)

        routing = Routing(logits_BTE, experts_BTK, own_BTK, self.balanced(logits_BTE, experts_BTK, weights_BTK))
        out_BTD = dispatch(self.experts, x_BTD, experts_BTK, weights_BTK, index)
        return shard(out_BTD, "batch", "time", None), routing


class SwiGluExperts(nnx.Module):
    """Qwen3's feed-forward layer, several times."""

    def __init__(self, config: TextConfig, rngs: nnx.Rngs):
        D, F, E, init = config.width, config.mlp, config.moe.experts, normal(config.init_std)
        self.gate = ExpertLinear(rngs, (E, F, D), ("expert", None, "expert_embed"), init, bias=False)
        self.up = ExpertLinear(rngs, (E, F, D), ("expert", None, "expert_embed"), init, bias=False)
        self.down = ExpertLinear(rngs, (E, D, F), ("expert", "expert_embed", None), init, bias=False)

    def __call__(self, x: jax.Array, groups: Groups, experts: jax.Array) -> jax.Array:
        hidden = gated(self.gate(x, groups, experts), self.up(x, groups, experts))
        return self.down(hidden, groups, experts)


class ClampedExperts(nnx.Module):
    """GPT-OSS's: a gate clamped from above, a linear half clamped on both sides and shifted by one, biases."""

    def __init__(self, config: TextConfig, rngs: nnx.Rngs):
        D, F, E, init = config.width, config.mlp, config.moe.experts, normal(config.init_std)
        self.gate_up = ExpertLinear(rngs, (E, 2, F, D), ("expert", None, None, "expert_embed"), init, bias=True)
        self.down = ExpertLinear(rngs, (E, D, F), ("expert", "expert_embed", None), init, bias=True)

    def __call__(self, x: jax.Array, groups: Groups, experts: jax.Array) -> jax.Array:
        gate, up = jnp.split(self.gate_up(x, groups, experts).astype(jnp.float32), 2, axis=-1)
        gate, up = jnp.minimum(gate, _LIMIT), jnp.clip(up, -_LIMIT, _LIMIT)
        hidden = (up + 1) * gate * jax.nn.sigmoid(_STEEPNESS * gate)
        return self.down(hidden.astype(x.dtype), groups, experts)


class ExpertLinear(nnx.Module):
    """A linear layer per expert: `[rows, in] -> [rows, out]`, the rows of one expert after those of another."""

    def __init__(
        self, rngs: nnx.Rngs, shape: tuple[int, ...], axes: tuple[str | None, ...], init: Callable, bias: bool
    ):
        self.weight = make_weight(rngs, shape[:-1], shape[-1:], (axes[:-1], axes[-1:]), init)
        self.bias = param(rngs, shape[:-1], axes[:-1], zeros) if bias else None

    def __call__(self, x: jax.Array, groups: Groups, experts: jax.Array) -> jax.Array:
        """The products of all rows with the weights of their experts.

        Args:
          groups: the rows of every expert.
          experts: the place of every row's expert in the parameters.
        """
        y = self.weight.grouped(x, groups)
        if self.bias is None:
            return y
        bias = self.bias[...].astype(y.dtype)
        return y + bias.reshape(len(bias), -1)[experts]
