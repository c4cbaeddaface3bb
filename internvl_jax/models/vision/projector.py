"""From patch features to the language model's width: pixel shuffle (v2), `mlp1` and, for compressed tiles, `mlp2`."""

import jax
from flax import nnx

from internvl_jax.models.bricks.nn import LayerNorm, Linear, dropout, gelu, normal


def pixel_shuffle(x: jax.Array, side: int) -> jax.Array:
    """Neighbours join, row-major (released ps_version v2).

    `[G, rows, columns, D] -> [G, rows / side, columns / side, side * side * D]`.
    """
    G, rows, columns, D = x.shape
    x = x.reshape(G, rows // side, side, columns // side, side, D).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(G, rows // side, columns // side, side * side * D)


class Projector(nnx.Module):
    """`mlp1`: LayerNorm, linear, GELU, linear. `[G, P, inputs] -> [G, P, width]`."""

    def __init__(self, inputs: int, width: int, rngs: nnx.Rngs, init_std: float):
        init = normal(init_std)
        self.norm = LayerNorm(rngs, (inputs,), ("vit_embed",), eps=1e-5)  # torch's default; the release sets no other
        self.fc1 = Linear(rngs, (width,), (inputs,), (("mlp",), ("embed",)), init, bias=True)
        self.fc2 = Linear(rngs, (width,), (width,), (("embed",), ("mlp",)), init, bias=True)

    def __call__(self, x_GPD: jax.Array) -> jax.Array:
        return self.fc2(gelu(self.fc1(self.norm(x_GPD))))


class CompressedProjector(nnx.Module):
    """`mlp2` of the Flash models: LayerNorm and three linear layers, GELU and dropout between them."""

    def __init__(self, inputs: int, width: int, rate: float, rngs: nnx.Rngs, init_std: float):
        mlp, embed, init = ("mlp",), ("embed",), normal(init_std)
        self.norm = LayerNorm(rngs, (inputs,), ("vit_embed",), eps=1e-5)
        self.fc1 = Linear(rngs, (2 * width,), (inputs,), (mlp, embed), init, bias=True)
        self.fc2 = Linear(rngs, (2 * width,), (2 * width,), (embed, mlp), init, bias=True)
        self.fc3 = Linear(rngs, (width,), (2 * width,), (mlp, embed), init, bias=True)
        self.rate = rate

    def __call__(self, x_GPD: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Features in the language model's width.

        Args:
          key: randomness of dropout; None outside training.
        """
        keys = (None, None) if key is None else jax.random.split(key)
        x = dropout(gelu(self.fc1(self.norm(x_GPD))), self.rate, keys[0])
        return self.fc3(dropout(gelu(self.fc2(x)), self.rate, keys[1]))
