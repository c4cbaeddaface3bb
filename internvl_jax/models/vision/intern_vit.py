"""InternViT: patches and a class token through pre-norm layers with layer scale and drop path; no final norm.

Source: released modeling_intern_vit.py (300M with LayerNorm and qkv bias; 6B with RMSNorm, q/k
norm over the full width and no qkv bias).
"""

from collections.abc import Callable
from typing import Literal, overload

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from internvl_jax.models.attention.attention import attend
from internvl_jax.models.attention.kernels import BRANCH
from internvl_jax.models.bricks.nn import NORMS, Linear, RmsNorm, along, drop_path, gelu, identity, normal
from internvl_jax.models.config import VisionConfig
from internvl_jax.models.stack import Runtime, make_layers, run_layers
from internvl_jax.sharding import param, shard


class VisionAttention(nnx.Module):
    """Attention of every patch to every patch of its tile."""

    def __init__(self, config: VisionConfig, rngs: nnx.Rngs):
        N, H = config.heads, config.head_width
        heads, width, init = ("vit_heads", None), ("vit_embed",), normal(config.init_std)
        self.qkv = Linear(rngs, (3, N, H), (config.width,), ((None, *heads), width), init, bias=config.qkv_bias)
        self.proj = Linear(rngs, (config.width,), (N, H), (width, heads), init, bias=True)
        if config.qk_norm:
            self.q_norm: Callable[[jax.Array], jax.Array] = RmsNorm(rngs, (N, H), heads, config.norm_eps)
            self.k_norm: Callable[[jax.Array], jax.Array] = RmsNorm(rngs, (N, H), heads, config.norm_eps)
        else:
            self.q_norm = self.k_norm = identity

    def __call__(self, x_GPD: jax.Array) -> jax.Array:
        # Tiles stay where they are: the compiler would move heads, on which the weights may lie.
        qkv = shard(self.qkv(x_GPD), "tiles", None, None, None, None)
        q, k, v = (part[:, :, 0] for part in jnp.split(qkv, 3, axis=2))
        q, k, v = (part.transpose(0, 2, 1, 3) for part in (self.q_norm(q), self.k_norm(k), v))
        return self.proj(attend(q, k, v, mask=None).transpose(0, 2, 1, 3))


class VisionMlp(nnx.Module):
    def __init__(self, config: VisionConfig, rngs: nnx.Rngs):
        mlp, width, init = ("vit_mlp",), ("vit_embed",), normal(config.init_std)
        self.fc1 = Linear(rngs, (config.mlp,), (config.width,), (mlp, width), init, bias=True)
        self.fc2 = Linear(rngs, (config.width,), (config.mlp,), (width, mlp), init, bias=True)

    def __call__(self, x_GPD: jax.Array) -> jax.Array:
        return self.fc2(gelu(self.fc1(x_GPD)))


class VisionLayer(nnx.Module):
    def __init__(self, config: VisionConfig, rngs: nnx.Rngs):
        norm, width = NORMS[config.norm], (config.width,)
        self.norm1 = norm(rngs, width, ("vit_embed",), config.norm_eps)
        self.norm2 = norm(rngs, width, ("vit_embed",), config.norm_eps)
        self.attn = VisionAttention(config, rngs)
        self.mlp = VisionMlp(config, rngs)
        scale = nnx.initializers.constant(config.layer_scale_init)
        self.ls1: nnx.Param = param(rngs, width, ("vit_embed",), scale)
        self.ls2: nnx.Param = param(rngs, width, ("vit_embed",), scale)

    def __call__(self, x_GPD: jax.Array, rate: jax.Array, key: jax.Array | None) -> jax.Array:
        keys = (None, None) if key is None else jax.random.split(key)
        branch = self.attn(self.norm1(x_GPD)) * along(self.ls1[...].astype(x_GPD.dtype), x_GPD)
        x_GPD = x_GPD + drop_path(branch, rate, keys[0])
        branch = checkpoint_name(self.mlp(self.norm2(x_GPD)), BRANCH) * along(self.ls2[...].astype(x_GPD.dtype), x_GPD)
        return shard(x_GPD + drop_path(branch, rate, keys[1]), "tiles", None, None)


class InternViT(nnx.Module):
    """Tiles to patch features."""

    def __init__(self, config: VisionConfig, rngs: nnx.Rngs, runtime: Runtime):
        self.config, self.runtime = config, runtime
        patch, width = config.patch_size, config.width
        init = normal(config.init_std)
        self.patch = Linear(rngs, (width,), (patch, patch, 3), (("vit_embed",), (None, None, None)), init, bias=True)
        self.cls: nnx.Param = param(rngs, (width,), ("vit_embed",), init)
        self.positions: nnx.Param = param(rngs, (1 + config.grid**2, width), (None, "vit_embed"), init)
        self.layers = make_layers(lambda rngs: VisionLayer(config, rngs), config.layers, rngs)

    @overload
    def __call__(
        self, tiles_GHWC: jax.Array, key: jax.Array | None = None, collect: Literal[False] = False
    ) -> jax.Array: ...

    @overload
    def __call__(
        self, tiles_GHWC: jax.Array, key: jax.Array | None = None, *, collect: Literal[True]
    ) -> tuple[jax.Array, jax.Array]: ...

    def __call__(
        self, tiles_GHWC: jax.Array, key: jax.Array | None = None, collect: bool = False
    ) -> jax.Array | tuple[jax.Array, jax.Array]:
        """Patch features of normalised tiles.

        Args:
          tiles_GHWC: float, sides divisible by the patch size; where the grid is not the trained one the position table
            is interpolated.
          key: randomness of drop path; None outside training.
          collect: also return the input and the output of every layer.

        Returns:
          `[G, 1 + P, D]` (class token first), or with `collect` that and `[L + 1, G, 1 + P, D]`.
        """
        config = self.config
        G, height, width, _ = tiles_GHWC.shape
        rows, columns, size = height // config.patch_size, width // config.patch_size, config.patch_size
        patches = tiles_GHWC.reshape(G, rows, size, columns, size, 3).transpose(0, 1, 3, 2, 4, 5)
        x = self.patch(patches.reshape(G, rows * columns, size, size, 3).astype(self.runtime.dtype))
        cls = jnp.broadcast_to(self.cls[...].astype(x.dtype), (G, 1, config.width))
        table = _position_table(self.positions[...], config.grid, (rows, columns))
        x = shard(jnp.concatenate([cls, x], axis=1) + table[None].astype(x.dtype), "tiles", None, None)

        rates = jnp.asarray(np.linspace(0, config.drop_path, config.layers), jnp.float32)
        # Random numbers cost compile time, also where every rate is 0.
        keys = jax.random.split(key, config.layers) if key is not None and config.drop_path else None

        def body(
            layer: VisionLayer, x: jax.Array, index: jax.Array | int, extra: tuple[jax.Array, jax.Array | None]
        ) -> tuple[jax.Array, jax.Array | None]:
            rate, key = extra
            x = layer(x, rate, key)
            return x, (x if collect else None)

        last, outs = run_layers(self.layers, x, (rates, keys), body, self.runtime)
        return (last, jnp.concatenate([x[None], outs])) if collect else last


def _position_table(table: jax.Array, grid: int, wanted: tuple[int, int]) -> jax.Array:
    """`[1 + rows * columns, D]`: the trained table, its patch part bicubically interpolated to another grid."""
    if wanted == (grid, grid):
        return table
    rows, columns = (jnp.asarray(_bicubic(grid, size)) for size in wanted)
    patches = table[1:].astype(jnp.float32).reshape(grid, grid, -1)
    patches = jnp.einsum("ra,cb,abd->rcd", rows, columns, patches, precision="highest")
    return jnp.concatenate([table[:1], patches.reshape(wanted[0] * wanted[1], -1).astype(table.dtype)])


def _bicubic(old: int, new: int) -> np.ndarray:
    """`[new, old]` weights of torch's bicubic interpolation (a = -0.75, pixel centres, clamped, no antialiasing)."""
    centre = (np.arange(new) + 0.5) * (old / new) - 0.5
    first = np.floor(centre).astype(int)
    weights = np.zeros((new, old), np.float32)
    for tap in range(-1, 3):
        t = np.abs(centre - (first + tap))
        near = (1.25 * t - 2.25) * t * t + 1
        far = ((-0.75 * t + 3.75) * t - 6) * t + 3
        np.add.at(weights, (np.arange(new), np.clip(first + tap, 0, old - 1)), np.where(t <= 1, near, far))
    return weights
