"""Where a model lives that answers: on one device, or on a mesh by rules that suit the model."""

import contextlib
import dataclasses
import math
from collections.abc import Mapping
from contextlib import AbstractContextManager

import jax
from jax.sharding import Mesh, NamedSharding, Sharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from internvl_jax.errors import InputError
from internvl_jax.sharding.flat import ParamSpec, shardings
from internvl_jax.sharding.mesh import with_all_axes
from internvl_jax.sharding.rules import PRESETS, Rules, check_mesh, use


@dataclasses.dataclass(frozen=True)
class Placement:
    """A mesh, and what lies where on it."""

    mesh: Mesh
    rules: Rules

    @classmethod
    def of(
        cls, mesh: Mesh | None, rules: Rules | str | None, heads: int, sizes: Mapping[str, int]
    ) -> "Placement | None":
        """That of a model; None for one device.

        Args:
          mesh: of any of the axes `AXES`, of any type; None: one device.
          rules: a preset or its name; `serve_tp` where none are given.
          heads: the query heads of the language model, which devices must be able to share; 0 where there is none.
          sizes: of logical axes that lie whole on more devices where the mesh does not divide them.

        Raises:
          InputError: rules or an axis of the mesh that nobody knows, an axis that spreads nothing, or heads that can't
            be shared.
        """
        rules = rules or "serve_tp"
        if isinstance(rules, str):
            if rules not in PRESETS:
                raise InputError(f"there are no rules {rules!r}; the presets are {', '.join(PRESETS)}")
            rules = PRESETS[rules]
        if mesh is None:
            return None
        mesh = with_all_axes(mesh)
        check_mesh(mesh, rules)
        if heads % math.prod(mesh.shape[axis] for axis in rules.act_heads):
            axes = " x ".join(f"{axis}={mesh.shape[axis]}" for axis in rules.act_heads)
            raise InputError(f"the model's {heads} heads can't be shared by {axes} devices; choose a divisor")
        return cls(mesh, rules.fitted(mesh, sizes))


def placed(placement: Placement | None) -> AbstractContextManager[None]:
    """`use` of a placement."""
    return contextlib.nullcontext() if placement is None else use(placement.mesh, placement.rules)


def everywhere(place: Sharding) -> Sharding:
    """Whole on every device of a mesh, or on the one device."""
    return NamedSharding(place.mesh, P()) if isinstance(place, NamedSharding) else place


def places(specs: dict[str, ParamSpec], placement: Placement | None) -> dict[str, Sharding]:
    """Where the parameters of a model lie."""
    if placement is None:
        return dict.fromkeys(specs, SingleDeviceSharding(jax.devices()[0]))
    return shardings(specs, placement.mesh, placement.rules)
