"""From patch features to the language model's width: pixel shuffle (v2) and `mlp1`."""

import jax
from flax import nnx

from internvl_jax.models.nn import LayerNorm, Linear, gelu, normal


def pixel_shuffle(x_GRCD: jax.Array, side: int) -> jax.Array:
    """`[G, R, C, D] -> [G, R/side, C/side, side*side*D]`: neighbours join, row-major (released ps_version v2)."""
    G, R, C, D = x_GRCD.shape
    x = x_GRCD.reshape(G, R // side, side, C // side, side, D).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(G, R // side, C // side, side * side * D)


class Projector(nnx.Module):
    """`mlp1`: LayerNorm, linear, GELU, linear. `[G, P, inputs] -> [G, P, width]`."""

    def __init__(self, inputs: int, width: int, rngs: nnx.Rngs, init_std: float):
        init = normal(init_std)
        self.norm = LayerNorm(rngs, (inputs,), ("vit_embed",), eps=1e-5)  # torch's default; the release sets no other
        self.fc1 = Linear(rngs, (width,), (inputs,), (("mlp",), ("embed",)), init, bias=True)
        self.fc2 = Linear(rngs, (width,), (width,), (("embed",), ("mlp",)), init, bias=True)

    def __call__(self, x_GPD: jax.Array) -> jax.Array:
        return self.fc2(gelu(self.fc1(self.norm(x_GPD))))
