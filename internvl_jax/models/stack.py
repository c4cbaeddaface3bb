"""Equal layers: one scan over their stacked parameters or, where each has arrays of its own, one after the other.

What differs from layer to layer (a window, a drop-path rate) is given as an array with a leading layer axis.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from internvl_jax.errors import InputError
from internvl_jax.models.attention import kernels
from internvl_jax.models.bricks.weight import as_matrices
from internvl_jax.models.transforms.adapter_places import AdapterPlaces
from internvl_jax.sharding import Placement

Remat = Literal["none", "dots", "mlp", "gate", "qkv", "attention", "full"]

_POLICIES = {
    "none": None,
    # Keeps the results of products with weights; recomputes norms, activations and attention.
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    # Keeps what the causal attention kernel returns, so that it runs forward once (on CPU there is no kernel).
    "attention": jax.checkpoint_policies.save_only_these_names(kernels.SAVED),
    # The same, and the language model's queries, keys and values.
    "qkv": jax.checkpoint_policies.save_only_these_names(kernels.SAVED, kernels.QKV),
    # The same, and the gate's product of its feed-forward layers.
    "gate": jax.checkpoint_policies.save_only_these_names(kernels.SAVED, kernels.QKV, kernels.GATE),
    # The same, and the other inner product of its feed-forward layers.
    "mlp": jax.checkpoint_policies.save_only_these_names(kernels.SAVED, kernels.QKV, kernels.GATE, kernels.UP),
    "full": jax.checkpoint_policies.nothing_saveable,
}


@dataclasses.dataclass(frozen=True)
class Runtime:
    """How a model runs; what it is stands in its config.

    Attributes:
      dtype: the dtype of activations and of the inputs of products.
      remat: what the backward pass recomputes; `_POLICIES` says what each name keeps.
      placement: where a model that answers lives; None: on one device. (Training has its own.)
      skip_blocks: whether attention over long rows leaves out blocks of keys in which a block of queries has none of
        its segments. Values don't depend on it: it is for finding faults, and for comparing times.
      adapters: places for adapters that requests may name; None: there are none.
    """

    dtype: jnp.dtype = jnp.float32
    remat: Remat = "none"
    placement: Placement | None = None
    skip_blocks: bool = True
    adapters: AdapterPlaces | None = None

    def __post_init__(self) -> None:
        if self.remat not in _POLICIES:
            raise InputError(f"remat is {self.remat!r}; use one of {', '.join(_POLICIES)}")


def make_layers(make: Callable[[nnx.Rngs], nnx.Module], length: int, rngs: nnx.Rngs) -> nnx.Module:
    """`length` layers as one module: parameters stacked on a leading 'layers' axis."""
    keys = jax.random.split(rngs.params(), length)
    layers = nnx.vmap(lambda key: make(nnx.Rngs(params=key)), in_axes=0, out_axes=0)(keys)
    for variable in jax.tree.leaves(nnx.state(layers, nnx.Param), is_leaf=lambda leaf: isinstance(leaf, nnx.Param)):
        variable.set_metadata("axes", ("layers", *variable.get_metadata("axes")))
    return layers


def run_layers(
    layers: nnx.Module, carry: Any, per_layer: Any, body: Callable, runtime: Runtime, whole: Callable | None = None
) -> tuple[Any, Any]:
    """Folds `body(layer, carry, index, extra) -> (carry, out)` over the layers.

    Args:
      layers: what `make_layers` returned, or a list of layers (for decoding on CPU).
      carry: any pytree.
      per_layer: a pytree whose leaves have a leading layer axis.
      body: a pure function; `index` is the layer's number, `extra` the layer's slice of `per_layer`.
      whole: for generation, a filter, (path, parameter) -> bool. A stacked parameter that it holds for is in every
        layer that of all layers, `[L, ...]`. (A layer's slice is copied where a kernel reads it.) None: every layer has
        its own.

    Returns:
      The last carry, and the outs stacked on a leading layer axis.
    """
    policy = _POLICIES[runtime.remat]
    if isinstance(layers, nnx.List):
        outs = []
        for index, layer in enumerate(layers):
            carry, out = body(layer, carry, index, jax.tree.map(lambda leaf, i=index: leaf[i], per_layer))
            outs.append(out)
        return carry, jax.tree.map(lambda *leaves: jnp.stack(leaves), *outs)

    graphdef, uncut, state = nnx.split(layers, whole or nnx.Nothing(), ...)
    # In generation alone: a training step is as it was planned.
    state, restored = (state, lambda state: state) if whole is None else as_matrices(state)

    def step(carry: Any, inputs: tuple) -> tuple[Any, Any]:
        state, index, extra = inputs
        return body(nnx.merge(graphdef, uncut, restored(state)), carry, index, extra)

    if policy is not None:
        step = jax.checkpoint(step, policy=policy, prevent_cse=False)
    length = jax.tree.leaves(state)[0].shape[0]
    return jax.lax.scan(step, carry, (state, jnp.arange(length), per_layer))
