"""What a model is whose weights are quantised: how it multiplies, which of its weights are, and what their
parameters are called.
"""

from collections.abc import Iterable
from typing import Literal

import jax.numpy as jnp

# 'int8': products of integers with the inputs as they are, 'w8a8': with inputs that are rounded to 8 bits, too;
# 'mxfp4': experts as GPT-OSS's release has them.
Quantised = Literal["int8", "w8a8", "mxfp4"]
QUANTISED: tuple[Quantised, ...] = ("int8", "w8a8", "mxfp4")

# The paths of a weight's parameters end so once it is quantised; otherwise the path ends with `.weight`.
_DTYPES = {".int8": jnp.int8, ".int8_scale": jnp.float32, ".mxfp4": jnp.uint8, ".mxfp4_scale": jnp.uint8}


def is_quantised(path: str, how: Quantised) -> bool:
    """Whether a weight is quantised, by its path, 'lm.layers.attn.q.weight': the products of the language
    model's layers are. Routers choose by small differences; embeddings are looked up, the head is read once a token and
    is as exact as its logits; the tower's time goes into products, not into reading weights.
    """
    if not path.startswith("lm.layers.") or not path.endswith((".weight", ".weight.base")):
        return False
    return ".experts." in path if how == "mxfp4" else ".router." not in path


def weight_path(path: str) -> str | None:
    """The path of the weight that such a parameter is of; None for other parameters."""
    suffix = _suffix(path)
    return None if suffix is None else path.removesuffix(suffix)


def quantised_as(paths: Iterable[str]) -> Quantised | None:
    """How a model with these parameters is stored; 'int8' for 'w8a8' too. None: as it is."""
    found = {_suffix(path) for path in paths}
    return "int8" if ".int8" in found else "mxfp4" if ".mxfp4" in found else None


def stored_dtype(path: str, dtype: jnp.dtype) -> jnp.dtype:
    """The dtype of a parameter in a model of this dtype: what multiplies a product stays exact."""
    if path.endswith(".weight.scale"):
        return jnp.dtype(jnp.float32)
    suffix = _suffix(path)
    return jnp.dtype(dtype if suffix is None else _DTYPES[suffix])


def _suffix(path: str) -> str | None:
    """What a parameter of a quantised weight, also of one beside an adapter, has behind the weight's path."""
    return next((name for name in _DTYPES if path.endswith((f".weight{name}", f".weight.base{name}"))), None)
