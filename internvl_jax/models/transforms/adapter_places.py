"""Several adapters beside one base, of which every row of a batch has one, or none.

Adapters come and go while the structure stays: there is a number of places, each of the largest rank that an adapter
may have. Together the places are one adapter of that many ranks, of which a row sees those of its own place; what a
place has no ranks for is 0. So all rows are multiplied together, and the base is read once.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from msgspec import Meta

from internvl_jax.errors import InputError
from internvl_jax.models.bricks.weight import Weight
from internvl_jax.models.transforms.lora import LowRank
from internvl_jax.models.transforms.lora_config import AdaptedWeight, LoraConfig, plain_path
from internvl_jax.sharding import Params, bind
from internvl_jax.validation import check_fields

NO_PLACE = -1  # of a row that has no adapter

# Features of tiles are shared by all requests, so their weights have no places. Nor have experts, which rows are mixed
# for, and tables.
_PLACED = re.compile(r"lm\.layers\.(attn\.[qkvo]|mlp\.(gate|up|down))")


@dataclasses.dataclass(frozen=True)
class AdapterPlaces:
    """How many adapters a model may have beside it at a time.

    Attributes:
      count: places.
      rank: the largest rank of any of an adapter's weights.
    """

    count: Annotated[int, Meta(ge=1, le=1024)]
    rank: Annotated[int, Meta(ge=1, le=1024)]

    def __post_init__(self) -> None:
        check_fields(self, "places for adapters")


class PlacedLinear(LowRank):
    """A weight with places for adapters, with the methods of a `Weight` that a language model's layers call."""

    def __init__(self, base: Weight, adapted: AdaptedWeight, lora: LoraConfig, rngs: nnx.Rngs):
        super().__init__(base, adapted, lora, rngs)
        self.rows: nnx.Variable | None = None

    def _scaled(self, inner: jax.Array) -> jax.Array:
        scaled = super()._scaled(inner)
        if self.rows is None:
            return jnp.zeros_like(scaled)
        # Another row's adapter may have overflowed here: it is left out, not multiplied by 0.
        own = self.rows[...].reshape(-1, *(1,) * (inner.ndim - 2), inner.shape[-1])
        return jnp.where(own, scaled, 0)


def add_places(model: nnx.Module, places: AdapterPlaces, rngs: nnx.Rngs) -> None:
    """Puts places for adapters beside the weights of a language model's layers."""
    rank = places.count * places.rank
    for path, module in list(nnx.iter_modules(model)):
        name = ".".join(map(str, path))
        for held, part in list(vars(module).items()):
            if _PLACED.fullmatch(name) and isinstance(part, Weight):
                layers = part[...].shape[0]
                adapted = AdaptedWeight(name, ((rank,),) * layers, ((float(rank),),) * layers)
                setattr(module, held, PlacedLinear(part, adapted, LoraConfig((adapted,)), rngs))


def bind_for_rows(graphdef: nnx.GraphDef, params: Params, places_B: jax.Array | None) -> Any:
    """The model of these parameters for rows that have the adapters of these places; None: none of them has any."""
    model = bind(graphdef, params)
    if places_B is None:
        return model
    places = model.runtime.adapters
    own = places_B[:, None] == jnp.arange(places.count * places.rank)[None] // places.rank
    for _, module in nnx.iter_modules(model):
        if isinstance(module, PlacedLinear):
            layers = module.scale.shape[:-1]
            rows = jnp.broadcast_to(own, (*layers, *own.shape))
            module.rows = nnx.data(nnx.Variable(rows, axes=(*("layers" for _ in layers), "batch", None)))
    return model


def for_one_place(
    places: AdapterPlaces, stacks: Params, lora: LoraConfig, params: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """What a place holds of an adapter: for every stack `[L, places x rank, in...]`, `[L, out..., places x rank]` and
    `[L, places x rank]` the same of one place, float32, 0 where the adapter has nothing.

    Args:
      stacks: the model's parameters of all places, see `stacks_of`.
      lora, params: the adapter; of every weight `PATH.weight.a [L, rank, in...]` and `.b [L, out..., rank]`.

    Raises:
      InputError: it changes something else than these weights, or has a larger rank.
    """
    homes = {path.removesuffix(".weight.a") for path in stacks if path.endswith(".a")}
    others = [*(weight.path for weight in lora.weights if weight.path not in homes), *lora.whole]
    if others:
        raise InputError(
            f"the adapter changes {others[0]}; beside others only attention and plain feed-forward weights of the "
            "language model may be adapted: merge it (launch.convert) and serve it by itself"
        )
    if large := [weight for weight in lora.weights if weight.rank > places.rank]:
        raise InputError(
            f"the adapter has rank {large[0].rank} at {large[0].path}, places here hold {places.rank}; start with a "
            "larger rank of places"
        )
    found: dict[str, np.ndarray] = {}
    given = {weight.path: weight for weight in lora.weights}
    for path, stack in stacks.items():
        home, _, part = path.rpartition(".weight.")
        axis = rank_axis(path)
        shape = list(stack.shape)
        shape[axis] = places.rank
        found[path] = np.zeros(shape, np.float32)
        if (weight := given.get(home)) is not None:
            value = lora.scales(weight) if part == "scale" else params[path]
            found[path][(*(slice(None),) * (axis % stack.ndim), slice(weight.rank))] = value
    return found


def stacks_of(params: Params) -> Params:
    """The parameters of all places, of a model that has some and no other adapter."""
    return {path: value for path, value in params.items() if plain_path(path) is None}


def rank_axis(path: str) -> int:
    """The axis of a stacked parameter of places along which these lie."""
    return -1 if path.endswith(".b") else 1


def put_in_place(stack: jax.Array, own: jax.Array, place: jax.Array, axis: int) -> jax.Array:
    """A parameter of all places with what an adapter has of it in its place; one beyond the last takes nothing.

    Args:
      stack, own: see `for_one_place`.
      axis: along which places lie.
    """
    axis %= stack.ndim
    shape = (*stack.shape[:axis], -1, own.shape[axis], *stack.shape[axis + 1 :])
    parts = stack.reshape(shape).at[(*(slice(None),) * axis, place)].set(own.astype(stack.dtype), mode="drop")
    return parts.reshape(stack.shape)
