"""The Visual Resolution Router (ViR) of the Flash models: may a tile be shown with a quarter of its tokens?

1. One learned query gathers a tile's patch features by cross-attention.
2. A small feed-forward network turns the result into two logits; softmax's first is the probability of "compress".

Source: InternVL3.5 paper (arXiv 2508.18265) section 2.3 and the modeling_internvl_chat.py of the Flash models.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from internvl_jax.models.attention import attend
from internvl_jax.models.config import FlashConfig
from internvl_jax.models.nn import LayerNorm, Linear, along, dot, dropout, gelu, normal
from internvl_jax.models.stack import Runtime, make_layers, run_layers
from internvl_jax.sharding import param

_BLOCKS = 4
_EPS = 1e-5  # torch's default; the release sets no other


class CrossAttention(nnx.Module):
    """One query a tile attends to the tile's patches; torch's MultiheadAttention."""

    def __init__(self, width: int, heads: int, rngs: nnx.Rngs, init_std: float):
        N, H = heads, width // heads
        head_axes, width_axes, init = ("vit_heads", None), ("vit_embed",), normal(init_std)
        self.qkv = Linear(rngs, (3, N, H), (width,), ((None, *head_axes), width_axes), init, bias=True)
        self.proj = Linear(rngs, (width,), (N, H), (width_axes, head_axes), init, bias=True)

    def keys_values(self, x_GPD: jax.Array) -> tuple[jax.Array, jax.Array]:
        """`[G, N, P, H]` each."""
        return self._project(x_GPD, 1), self._project(x_GPD, 2)

    def __call__(self, q_GD: jax.Array, keys_values: tuple[jax.Array, jax.Array]) -> jax.Array:
        out_GN1H = attend(self._project(q_GD[:, None], 0), *keys_values, mask=None)
        return self.proj(out_GN1H[:, :, 0])

    def _project(self, x_GTD: jax.Array, part: int) -> jax.Array:
        weight_NHD, bias_NH = self.qkv.weight[...][part], self.qkv.bias[...][part]
        y = dot(x_GTD, weight_NHD.reshape(-1, weight_NHD.shape[-1]))
        y = y + along(bias_NH.reshape(-1).astype(y.dtype), y)
        return y.reshape(*y.shape[:2], *bias_NH.shape).transpose(0, 2, 1, 3)


class CrossAttentionPooling(nnx.Module):
    """`[G, P, D] -> [G, D]`."""

    def __init__(self, width: int, heads: int, rngs: nnx.Rngs, init_std: float):
        attention = lambda: CrossAttention(width, heads, rngs, init_std)
        norm = lambda: LayerNorm(rngs, (width,), ("vit_embed",), _EPS)
        self.query = param(rngs, (width,), ("vit_embed",), normal(init_std))
        self.attn1, self.norm1, self.attn2, self.norm2 = attention(), norm(), attention(), norm()
        # The release makes, saves and counts four of each, but its forward pass runs the second pair three times.
        self.attn3, self.norm3, self.attn4, self.norm4 = attention(), norm(), attention(), norm()

    def __call__(self, x_GPD: jax.Array) -> jax.Array:
        query_D = self.query[...].astype(x_GPD.dtype)
        q_GD = jnp.broadcast_to(query_D, (x_GPD.shape[0], *query_D.shape))
        q_GD = self.norm1(self.attn1(q_GD, self.attn1.keys_values(x_GPD)))
        keys_values = self.attn2.keys_values(x_GPD)
        for _ in range(3):
            q_GD = self.norm2(self.attn2(q_GD, keys_values))
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
        """Args:
        key: dropout randomness; None outside training.
        """
        keys = None if key is None else jax.random.split(key, _BLOCKS)
        x_GD = self.pooling(x_GPD).astype(jnp.float32)
        body = lambda block, x_GD, index, key: (block(x_GD, key), None)
        x_GD, _ = run_layers(self.blocks, x_GD, keys, body, self.runtime)
        return self.head(self.norm(x_GD))
