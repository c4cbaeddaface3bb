"""What an adapter is: which weights have a low-rank difference beside them, of which rank and scale, and which
parameters it has whole.
"""

import dataclasses
import math
import re
from typing import Annotated, Any, Self

import numpy as np
from msgspec import Meta

from internvl_jax.errors import InputError
from internvl_jax.validation import Positive, build, check_fields

Rank = Annotated[int, Meta(ge=0, le=65536)]

# The paths of a weight's parameters are such once it is adapted; without adapter they begin with `.weight`. What is
# stored in another way has several.
_BASE = re.compile(r"\.weight\.base(?=$|\.)")
# A table and a convolution: what PEFT has no adapters of as it has them of matrices.
NO_MATRICES = ("lm.embed", "vit.patch")
ADAPTER = (".weight.a", ".weight.b", ".weight.scale")


@dataclasses.dataclass(frozen=True)
class AdaptedWeight:
    """A weight with adapters.

    Attributes:
      path: of the layer that has it, as 'lm.layers.attn.q' or 'projector.fc1'.
      ranks: for every layer of a stack (one, where there is none) the rank of every part; 0 adapts nothing there. A
        weight is one part, or as many as its first dimension has: queries, keys and values that lie in one weight and
        have adapters of their own.
      alphas: as `ranks`; a part is scaled by alpha / rank.
    """

    path: str
    ranks: tuple[tuple[Rank, ...], ...]
    alphas: tuple[tuple[Positive, ...], ...]

    def __post_init__(self) -> None:
        check_fields(self, f"adapter of {self.path}")
        shapes = [[len(layer) for layer in values] for values in (self.ranks, self.alphas)]
        if shapes[0] != shapes[1] or not self.ranks or len(set(shapes[0])) != 1 or not self.rank:
            raise InputError(f"adapter of {self.path}: ranks and alphas must be as many in every layer, and some not 0")

    @property
    def widths(self) -> tuple[int, ...]:
        """How many rows of `a` every part has: its largest rank, as a stack has one shape for all layers."""
        return tuple(map(max, zip(*self.ranks, strict=True)))

    @property
    def rank(self) -> int:
        """Rows of `a`: those of all parts."""
        return sum(self.widths)

    @property
    def parts(self) -> tuple[int, ...]:
        """The part of every row of `a`."""
        return tuple(part for part, width in enumerate(self.widths) for _ in range(width))

    def rows(self, layer: int, part: int) -> slice:
        """The rows of `a` that a part has in a layer."""
        start = sum(self.widths[:part])
        return slice(start, start + self.ranks[layer][part])


def scale(rank: int, alpha: float, rslora: bool) -> float:
    """What the product of an adapter's factors is multiplied by (rslora: arXiv 2312.03732)."""
    return alpha / (math.sqrt(rank) if rslora else rank) if rank else 0.0


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """The adapter of a model.

    Attributes:
      weights: those that are adapted, in the order of their paths.
      whole: paths of the parameters that it has whole, in order.
      rslora: whether the scale is alpha / sqrt(rank).
      dropout: of the adapters' inputs, in training.
    """

    weights: tuple[AdaptedWeight, ...]
    whole: tuple[str, ...] = ()
    rslora: bool = False
    dropout: Annotated[float, Meta(ge=0, lt=1)] = 0.0

    def __post_init__(self) -> None:
        check_fields(self, "adapter")
        for paths in ([weight.path for weight in self.weights], list(self.whole)):
            if paths != sorted(set(paths)):
                raise InputError(f"adapter: the paths {paths[:5]} are not in order, or one stands twice; sort them")
        if twice := [weight.path for weight in self.weights if f"{weight.path}.weight" in self.whole]:
            raise InputError(f"adapter: {twice[0]} has a low-rank difference and is there whole; leave out one")

    def scales(self, weight: AdaptedWeight) -> np.ndarray:
        """float32 [layers, rank]: the factor of every row of `a`, 0 for rows that a layer does not have."""
        found = np.zeros((len(weight.ranks), weight.rank), np.float32)
        for layer, (ranks, alphas) in enumerate(zip(weight.ranks, weight.alphas, strict=True)):
            for part, (rank, alpha) in enumerate(zip(ranks, alphas, strict=True)):
                found[layer, weight.rows(layer, part)] = scale(rank, alpha, self.rslora)
        return found

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Any, where: str) -> Self:
        """The inverse of `to_dict`, from JSON.

        Raises:
          InputError: something else than that.
        """
        if not isinstance(values, dict):
            return build(cls, values, where)
        values = dict(values)
        if isinstance(weights := values.get("weights"), list):
            values["weights"] = tuple(_weight(each, f"{where}.weights[{k}]") for k, each in enumerate(weights))
        if isinstance(whole := values.get("whole"), list):
            values["whole"] = tuple(whole)
        return build(cls, values, where)


def _weight(values: Any, where: str) -> AdaptedWeight:
    if isinstance(values, dict) and all(_nested(values.get(name)) for name in ("ranks", "alphas")):
        values = values | {name: tuple(map(tuple, values[name])) for name in ("ranks", "alphas")}
    return build(AdaptedWeight, values, where)


def _nested(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, list) for each in value)


def plain_path(path: str) -> str | None:
    """The path of an adapted model's parameter in the model without adapter; None for a parameter of an adapter."""
    if path.endswith(ADAPTER):
        return None
    return _BASE.sub(".weight", path)


def adapted_path(path: str, lora: LoraConfig | None) -> str:
    """The inverse of `plain_path`."""
    before, weight, how = path.partition(".weight")
    found = lora is not None and weight and any(before == adapted.path for adapted in lora.weights)
    return f"{before}.weight.base{how}" if found else path
