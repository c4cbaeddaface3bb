"""Equal layers: one scan over their stacked parameters or, where each has arrays of its own, one after the other.

What differs from layer to layer (a window, a drop-path rate) is given as an array with a leading layer axis.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from flax import nnx

from internvl_jax.errors import InputError
from internvl_jax.models.attention import kernels
from internvl_jax.models.bricks.weight import as_matrices
from internvl_jax.models.transforms.adapter_places import AdapterPlaces
from internvl_jax.sharding import Placement

CacheName = Literal["float8"]
CACHES: dict[CacheName, Any] = {"float8": jnp.float8_e4m3fn}

Remat = Literal["none", "dots", "mlp", "gate", "qkv", "attention", "full"]
Products = Literal["plain", "int8"]
Offload = Literal["none", "attention", "qkv", "gate", "mlp"]

# By name of `remat`, what is kept besides the inputs of layers. (The tower has none of these but `BRANCH`.)
_KEPT: dict[str, tuple[str, ...]] = {
    "full": (),
    # What the causal attention kernel returns, so that it runs forward once (on CPU there is no kernel).
    "attention": (kernels.SAVED,),
    # The same, and the language model's queries, keys and values.
    "qkv": (kernels.SAVED, kernels.QKV),
    # The same, and the gate's product of its feed-forward layers.
    "gate": (kernels.SAVED, kernels.QKV, kernels.GATE),
    # The same, and the other inner product of its feed-forward layers.
    "mlp": (kernels.SAVED, kernels.QKV, kernels.GATE, kernels.UP),
}
# In the host's memory also what saves the most for its bytes after that: the language model's sums after attention, and
# what the tower's feed-forward layers return.
_BESIDE = (kernels.MID, kernels.BRANCH)


@dataclasses.dataclass(frozen=True)
class Runtime:
    """How a model runs; what it is stands in its config.

    Attributes:
      dtype: the dtype of activations and of the inputs of products.
      remat: what the backward pass recomputes; `_KEPT` says what each name keeps, 'dots' keeps the results of products
        with weights, 'none' everything.
      offload: what is kept besides, in the memory of the accelerator's host: what a remat of this name would keep, and
        `_BESIDE`.
      tile_groups: into how many parts the tower's tiles are split, which it takes one after the other. The backward
        pass then keeps the activations of one part at a time, and computes each part once more.
      placement: where a model that answers lives; None: on one device. (Training has its own.)
      cache: what keys and values are kept in, where it is not the dtype of activations: 'float8' (e4m3) takes half of
        bfloat16's memory and time of reading.
      skip_blocks: whether attention over long rows leaves out blocks of keys in which a block of queries has none of
        its segments. Values don't depend on it: it is for finding faults, and for comparing times.
      products: 'int8' rounds both sides of the products of the language model's layers in the forward pass of training.
      adapters: places for adapters that requests may name; None: there are none.
    """

    dtype: jnp.dtype = jnp.float32
    remat: Remat = "none"
    offload: Offload = "none"
    tile_groups: int = 1
    placement: Placement | None = None
    cache: CacheName | None = None
    skip_blocks: bool = True
    products: Products = "plain"
    adapters: AdapterPlaces | None = None

    def __post_init__(self) -> None:
        if self.remat not in get_args(Remat):
            raise InputError(f"remat is {self.remat!r}; use one of {', '.join(get_args(Remat))}")
        if self.offload != "none" and not set(_KEPT.get(self.offload, ())) - set(_KEPT.get(self.remat, _KEPT["mlp"])):
            raise InputError(
                f"remat {self.remat!r} leaves nothing for offload {self.offload!r} to keep; set offload to none, or "
                "remat to a name that keeps less (full keeps least)"
            )
        if self.cache is not None and self.cache not in CACHES:
            raise InputError(f"cache is {self.cache!r}; use one of {', '.join(CACHES)}")

    @property
    def policy(self) -> Callable | None:
        """What `jax.checkpoint` keeps of a layer; None: everything, without a checkpoint."""
        if self.remat in ("none", "dots"):
            return None if self.remat == "none" else jax.checkpoint_policies.dots_with_no_batch_dims_saveable
        kept = _KEPT[self.remat]
        if self.offload == "none":
            return jax.checkpoint_policies.save_only_these_names(*kept)
        return jax.checkpoint_policies.save_and_offload_only_these_names(
            names_which_can_be_saved=list(kept),
            names_which_can_be_offloaded=[name for name in (*_KEPT[self.offload], *_BESIDE) if name not in kept],
            offload_src="device",
            offload_dst="pinned_host",
        )

    @property
    def cache_dtype(self) -> jnp.dtype:
        """The dtype of keys and values that are kept."""
        return jnp.dtype(self.dtype if self.cache is None else CACHES[self.cache])


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

    if runtime.policy is not None:
        step = jax.checkpoint(step, policy=runtime.policy, prevent_cse=False)
    length = jax.tree.leaves(state)[0].shape[0]
    return jax.lax.scan(step, carry, (state, jnp.arange(length), per_layer))
