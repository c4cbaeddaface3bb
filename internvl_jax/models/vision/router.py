"""The Visual Resolution Router (ViR) of the Flash models: may a tile be shown with a quarter of its tokens?

1. One learned query gathers a tile's patch features by cross-attention.
2. A small feed-forward network turns the result into two logits; softmax's first is the probability of "compress".

Source: InternVL3.5 paper (arXiv 2508.18265) section 2.3 and the modeling_internvl_chat.py of the Flash models.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from internvl_jax.models.bricks.nn import LayerNorm, Linear, dropout, gelu, normal
from internvl_jax.models.config import FlashConfig
from internvl_jax.models.stack import Runtime, make_layers, run_layers
from internvl_jax.sharding import param

_BLOCKS = 4
_EPS = 1e-5  # torch's default; the release sets no other


class CrossAttention(nnx.Module):
    """One query a tile attends to the tile's patches, `[G, D], [G, P, D] -> [G, D]`; torch's MultiheadAttention."""

    def __init__(self, width: int, heads: int, rngs: nnx.Rngs, init_std: float):
        N, H = heads, width // heads
        head_axes, width_axes, init = ("vit_heads", None), ("vit_embed",), normal(init_std)
        self.qkv = Linear(rngs, (3, N, H), (width,), ((None, *head_axes), width_axes), init, bias=True)
        self.proj = Linear(rngs, (width,), (N, H), (width_axes, head_axes), init, bias=True)

    def __call__(self, q_GD: jax.Array, x_GPD: jax.Array) -> jax.Array:
        """The attention's output.

        Patches are never projected to keys and values. There is one query, so the weight of the keys multiplies it
        instead, and the weight of the values multiplies the mean: 2D / N times fewer operations, and less to round. The
        bias of the keys is left out, as it adds the same to all scores of a head.
        """
        q_NHD, k_NHD, v_NHD = self.qkv.weight.dense(x_GPD.dtype)
        q_bias_NH, _, v_bias_NH = self.qkv.bias[...].astype(jnp.float32)
        product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
        q_GNH = product("gd,nhd->gnh", q_GD, q_NHD) + q_bias_NH[None]
        q_GNH = (q_GNH * q_GNH.shape[-1] ** -0.5).astype(x_GPD.dtype)
        q_GND = product("gnh,nhd->gnd", q_GNH, k_NHD).astype(x_GPD.dtype)
        weights_GNP = jax.nn.softmax(product("gnd,gpd->gnp", q_GND, x_GPD))
        mean_GND = product("gnp,gpd->gnd", weights_GNP.astype(x_GPD.dtype), x_GPD).astype(x_GPD.dtype)
        out_GNH = product("gnd,nhd->gnh", mean_GND, v_NHD) + v_bias_NH[None]
        return self.proj(out_GNH.astype(q_GD.dtype))


class CrossAttentionPooling(nnx.Module):
    """`[G, P, D] -> [G, D]`."""

    def __init__(self, width: int, heads: int, rngs: nnx.Rngs, init_std: float):
        attention = lambda: CrossAttention(width, heads, rngs, init_std)
        norm = lambda: LayerNorm(rngs, (width,), ("vit_embed",), _EPS)
        self.query: nnx.Param = param(rngs, (width,), ("vit_embed",), normal(init_std))
        self.attn1, self.norm1, self.attn2, self.norm2 = attention(), norm(), attention(), norm()
        # The release makes, saves and counts four of each, but its forward pass runs the second pair three times.
        self.attn3, self.norm3, self.attn4, self.norm4 = attention(), norm(), attention(), norm()

    def __call__(self, x_GPD: jax.Array) -> jax.Array:
        query_D = self.query[...].astype(x_GPD.dtype)
        q_GD = jnp.broadcast_to(query_D, (x_GPD.shape[0], *query_D.shape))
        q_GD = self.norm1(self.attn1(q_GD, x_GPD))
        for _ in range(3):
            q_GD = self.norm2(self.attn2(q_GD, x_GPD))
        return q_GD


class GatingBlock(nnx.Module):
    """A feed-forward network with its norm at the end, around it a residual connection."""

    def __init__(self, width: int, rate: float, rngs: nnx.Rngs, init_std: float):
        mlp, embed, init = ("vit_mlp",), ("vit_embed",), normal(init_std)
        self.fc1 = Linear(rngs, (4 * width,), (width,), (mlp, embed), init, bias=True)
        self.fc2 = Linear(rngs, (width,), (4 * width,), (embed, mlp), init, bias=True)
        self.norm = LayerNorm(rngs, (width,), embed, _EPS)
        self.rate = rate

    def __call__(self, x_GD: jax.Array, key: jax.Array | None) -> jax.Array:
        keys = (None, None) if key is None else jax.random.split(key)
        hidden = dropout(gelu(self.fc1(x_GD)), self.rate, keys[0])
        return x_GD + self.norm(dropout(self.fc2(hidden), self.rate, keys[1]))


class Router(nnx.Module):
    """Patch features of tiles to logits, `[G, P, D] -> [G, 2]` float32: column 0 compresses, column 1 does not."""

    def __init__(self, width: int, config: FlashConfig, rngs: nnx.Rngs, init_std: float, runtime: Runtime):
        self.pooling = CrossAttentionPooling(width, config.heads, rngs, init_std)
        self.blocks = make_layers(lambda rngs: GatingBlock(width, config.dropout, rngs, init_std), _BLOCKS, rngs)
        self.norm = LayerNorm(rngs, (width,), ("vit_embed",), _EPS)
        self.head = Linear(rngs, (2,), (width,), ((None,), ("vit_embed",)), normal(init_std), bias=True)
        self.runtime = runtime

    def __call__(self, x_GPD: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """The logits.

        Args:
          key: randomness of dropout; None outside training.
        """
        return self.gate(self.pooling(x_GPD), key)

    def gate(self, x_GD: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """The logits of pooled features, `[G, D] -> [G, 2]` float32; `key` as above."""
        keys = None if key is None else jax.random.split(key, _BLOCKS)
        x_GD = x_GD.astype(jnp.float32)
        body = lambda block, x_GD, index, key: (block(x_GD, key), None)
        x_GD, _ = run_layers(self.blocks, x_GD, keys, body, self.runtime)
        return self.head(self.norm(x_GD))
