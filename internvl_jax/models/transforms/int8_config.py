"""What a model stored in 8 bits is: how it multiplies, which of its weights are integers, and what their parameters are
called.
"""

from collections.abc import Iterable
from typing import Literal

import jax.numpy as jnp

# 'int8': the products are those of the inputs as they are, 'w8a8': of inputs that are rounded to 8 bits, too.
Quantised = Literal["int8", "w8a8"]
QUANTISED: tuple[Quantised, ...] = ("int8", "w8a8")

# The paths of a weight's parameters end so once it is integers; otherwise the path ends with `.weight`.
VALUES, SCALE = ".int8", ".int8_scale"


def is_quantised(path: str) -> bool:
    """Whether a weight becomes integers, by its path, 'lm.layers.attn.q.weight': the products of the language model's
    layers do. Routers choose by small differences; embeddings are looked up, the head is read once a token and is as
    exact as its logits; the tower's time goes into products, not into reading weights.
    """
    return path.startswith("lm.layers.") and path.endswith((".weight", ".weight.base")) and ".router." not in path


def holds_integers(paths: Iterable[str]) -> bool:
    """Whether these are parameters of a model in 8 bits."""
    return any(path.endswith(VALUES) for path in paths)


def stored_dtype(path: str, dtype: jnp.dtype) -> jnp.dtype:
    """The dtype of a parameter in a model of this dtype: what multiplies a product stays exact."""
    if path.endswith(VALUES):
        return jnp.dtype(jnp.int8)
    return jnp.dtype(jnp.float32) if path.endswith((".weight.scale", SCALE)) else jnp.dtype(dtype)


def weight_path(path: str) -> str | None:
    """The path of the weight that integers or scales stand for; None for other parameters."""
    suffix = next((suffix for suffix in (VALUES, SCALE) if path.endswith(suffix)), None)
    return None if suffix is None else path.removesuffix(suffix)
