"""Low-rank adapters beside weights: `W x + B (s * (A x))`, W as it was.

A model with `InternVLConfig.lora` has them in its structure: an `AdaptedLinear` in the place of a `Weight`, which holds
it as `base` beside `a` and `b`. No brick knows. In a stack all layers have as many rows of `a`; what a layer has fewer
of is 0, and so is their scale.

Source: LoRA (arXiv 2106.09685); names, initial values and the place of dropout are PEFT's.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from internvl_jax.errors import InputError
from internvl_jax.models.bricks.grouped import Groups, grouped_product
from internvl_jax.models.bricks.nn import dropout
from internvl_jax.models.bricks.weight import Weight, dot
from internvl_jax.models.transforms.lora_config import AdaptedWeight, LoraConfig, plain_path
from internvl_jax.sharding import Params, param


class LowRank(nnx.Module):
    """A weight and a low-rank difference beside it.

    `a[..., rank, in...]`, `b[..., out..., rank]` and `scale[..., rank]`, where `...` are layers of a stack and experts.
    They lie where inputs and outputs of the weight lie.
    """

    def __init__(self, base: Weight, adapted: AdaptedWeight, lora: LoraConfig, rngs: nnx.Rngs):
        shape, axes = base[...].shape, base.get_metadata("axes")
        self.num_inputs: int = base.get_metadata("num_inputs")
        lead = [axis for axis in axes[:2] if axis in ("layers", "expert")]
        self.parts = adapted.parts if len(adapted.widths) > 1 else None
        self.dropout = lora.dropout
        self.key: nnx.Variable | None = None
        before, outputs = shape[: len(lead)], shape[len(lead) : len(shape) - self.num_inputs]
        inputs, rank = shape[len(shape) - self.num_inputs :], adapted.rank
        if len(adapted.ranks) != (before[0] if "layers" in lead else 1):
            raise InputError(f"adapter of {adapted.path}: it has ranks for {len(adapted.ranks)} layers, the model not")
        if self.parts is not None and outputs[0] != len(adapted.widths):
            raise InputError(f"adapter of {adapted.path}: {len(adapted.widths)} parts, but {outputs[0]} in the weight")
        factors = lora.scales(adapted).reshape(-1, *(1,) * ("expert" in lead), rank)
        factors = np.broadcast_to(factors if "layers" in lead else factors[0], (*before, rank))
        bound = 1 / math.sqrt(math.prod(inputs))  # as of PEFT, kaiming_uniform with a = sqrt(5)
        some = lambda key, shape, dtype: (
            jax.random.uniform(key, shape, dtype, -bound, bound) * _along(factors != 0, shape)
        )
        zeros, given = jax.nn.initializers.zeros, lambda key, shape, dtype: jnp.asarray(factors, dtype)
        self.a: nnx.Param = param(rngs, (*before, rank, *inputs), (*lead, None, *axes[-self.num_inputs :]), some)
        middle, self.num_outputs = axes[len(lead) : len(axes) - self.num_inputs], len(outputs)
        self.b: nnx.Param = param(rngs, (*before, *outputs, rank), (*lead, *middle, None), zeros)
        self.scale: nnx.Param = param(rngs, factors.shape, (*lead, None), given)
        self.base = base

    def dot(self, x: jax.Array) -> jax.Array:
        """See `Weight`."""
        return self.base.dot(x) + self._low_rank(x)

    def product(self, x: jax.Array) -> jax.Array:
        """See `Weight`."""
        return self.base.product(x) + self._low_rank(x).astype(jnp.float32)

    def _low_rank(self, x: jax.Array) -> jax.Array:
        a, b = self.a[...], self._b()
        lead, rank = x.shape[: x.ndim - self.num_inputs], len(a)
        x = dropout(x.reshape(*lead, -1), self.dropout, None if self.key is None else self.key[...])
        inner = self._scaled(dot(x, a.reshape(rank, -1)).astype(jnp.float32))
        return dot(inner.astype(x.dtype), b.reshape(-1, rank)).reshape(*lead, *b.shape[:-1])

    def _scaled(self, inner: jax.Array) -> jax.Array:
        """`A x` times the scale, `[..., rank]`."""
        return inner * self.scale[...].reshape(*(1,) * (inner.ndim - 1), -1)

    def _b(self) -> jax.Array:
        """`b`, of which each part has its own columns."""
        b = self.b[...]
        if self.parts is None:
            return b
        own = np.arange(max(self.parts) + 1)[:, None] == np.array(self.parts)
        own = own.reshape(*(1,) * (b.ndim - self.num_outputs - 1), len(own), *(1,) * (self.num_outputs - 1), -1)
        return jnp.where(own, b, 0)


class AdaptedLinear(LowRank):
    """A weight with an adapter, with the methods of a `Weight`."""

    def dense(self, dtype: jnp.dtype | None = None) -> jax.Array:
        """See `Weight`."""
        base = self.base.dense()
        whole = base.astype(jnp.float32) + difference(self.a[...], self._b(), self.scale[...], base.shape)
        return whole.astype(base.dtype if dtype is None else dtype)

    def take(self, numbers: jax.Array, dtype: jnp.dtype) -> jax.Array:
        """See `Weight`."""
        rows = self._scaled(jnp.take(self._b(), numbers, axis=0).astype(jnp.float32))
        return self.base.take(numbers, dtype) + dot(rows, self.a[...].swapaxes(0, 1)).astype(dtype)

    def grouped(self, x: jax.Array, groups: Groups) -> jax.Array:
        """See `Weight`."""
        a, b, scale = self.a[...], self._b(), self.scale[...]
        own = lax.dynamic_slice_in_dim(scale, groups.first, len(groups.sizes))
        # Rows beyond the last group are nobody's, and may have any scale.
        factors = jnp.repeat(own, groups.sizes, axis=0, total_repeat_length=len(x))
        inner = grouped_product(x, a, groups).astype(jnp.float32) * factors
        outer = grouped_product(inner.astype(x.dtype), b.reshape(len(b), -1, b.shape[-1]), groups)
        return self.base.grouped(x, groups) + outer


def _along(rows: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return rows.reshape(*rows.shape, *(1,) * (len(shape) - rows.ndim))


def difference(a: Any, b: Any, scale: Any, shape: tuple[int, ...]) -> jax.Array:
    """float32, of `shape`: what an adapter adds to a weight; all axes of `scale` but the last are layers or experts."""
    lead, rank = scale.shape[:-1], scale.shape[-1]
    b = jnp.asarray(b, jnp.float32).reshape(*lead, -1, rank) * jnp.asarray(scale, jnp.float32)[..., None, :]
    a = jnp.asarray(a, jnp.float32).reshape(*lead, rank, -1)
    return jnp.matmul(b, a, precision=lax.Precision.HIGHEST).reshape(shape)


def adapt(model: nnx.Module, lora: LoraConfig, rngs: nnx.Rngs) -> None:
    """Puts adapters beside the weights of a model, those of the parts that it has.

    Raises:
      InputError: a weight that the model does not have, or of other shape.
    """
    wanted, tops = {weight.path: weight for weight in lora.weights}, set()
    for path, module in list(nnx.iter_modules(model)):
        tops.add(str(path[0]) if path else "")
        adapted = wanted.get(".".join(map(str, path)))
        for name, part in list(vars(module).items()):
            if adapted is not None and isinstance(part, Weight):
                setattr(module, name, AdaptedLinear(part, adapted, lora, rngs))
                del wanted[adapted.path]
    if unknown := sorted(path for path in wanted if path.partition(".")[0] in tops):
        raise InputError(
            f"the adapter is of weights that the model does not have: {', '.join(unknown[:5])}; give its own"
        )


def merged(params: Params, config: Any) -> Params:
    """The parameters of the model without adapter, sums of weights and their differences, which keep their dtypes.

    Args:
      params: of a model.
      config: its config, an `InternVLConfig` with or without adapter.
    """
    if config.lora is None:
        return params
    found: Params = {}
    for path, value in params.items():
        if (plain := plain_path(path)) is None:
            continue
        if path != plain:
            a, b, scale = (params[f"{plain}.{name}"] for name in ("a", "b", "scale"))
            value = (value.astype(jnp.float32) + difference(a, b, scale, value.shape)).astype(value.dtype)
        found[plain] = value
    return found


def with_dropout(model: nnx.Module, key: jax.Array) -> nnx.Module:
    """The model with random numbers for the dropout of its adapters; without any dropout as it is."""
    for number, (_, module) in enumerate(nnx.iter_modules(model)):
        if isinstance(module, AdaptedLinear) and module.dropout:
            own, layers = jax.random.fold_in(key, number), module.scale.ndim - 1
            module.key = nnx.data(nnx.Variable(jax.random.split(own, module.scale.shape[0]) if layers else own))
    return model
