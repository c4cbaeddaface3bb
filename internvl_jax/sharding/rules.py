"""Which mesh axes a logical axis lies on: a table for every strategy, small enough to be read at once."""

import contextlib
import contextvars
import dataclasses
import math
from collections.abc import Callable, Collection, Iterator, Mapping

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from internvl_jax.errors import InputError

MeshAxes = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Rules:
    """Mesh axes of every logical axis; an empty tuple keeps the dimension whole on each device."""

    # activations
    batch: MeshAxes  # rows of a batch
    tiles: MeshAxes  # in training the tiles of a row lie where the row does
    time: MeshAxes  # positions of a row
    act_heads: MeshAxes
    act_mlp: MeshAxes
    act_vocab: MeshAxes
    # parameters
    embed: MeshAxes  # model width
    heads: MeshAxes
    kv_heads: MeshAxes
    mlp: MeshAxes
    expert: MeshAxes  # also the tensor axis, which takes whole experts: none is split in its width
    expert_embed: MeshAxes  # model width in the weights of experts
    vocab: MeshAxes
    vit_embed: MeshAxes
    vit_heads: MeshAxes  # 25 in the 6B tower, which no power of two divides
    vit_mlp: MeshAxes
    layers: MeshAxes

    def parts(self, axes: tuple[str | None, ...]) -> list[MeshAxes]:
        """Mesh axes of every dimension."""
        table = dataclasses.asdict(self)
        return [table[axis] if axis is not None else () for axis in axes]

    def spec(self, axes: tuple[str | None, ...]) -> P:
        """The partition of an array whose dimensions carry these logical names.

        Raises:
          InputError: two dimensions would land on one mesh axis.
        """
        parts = self.parts(axes)
        used = [mesh_axis for part in parts for mesh_axis in part]
        if len(used) != len(set(used)):
            raise InputError(f"sharding rules: {axes} -> {parts} use one mesh axis twice; give the axes different ones")
        while parts and not parts[-1]:  # as JAX itself writes it
            parts.pop()
        return P(*(part or None for part in parts))

    def sharding(self, mesh: Mesh, shape: tuple[int, ...], axes: tuple[str | None, ...]) -> NamedSharding:
        """The sharding of an array of `shape` on `mesh`.

        Raises:
          InputError: a dimension is not divisible by the devices it is spread over (nothing is replicated silently).
        """
        spec = self.spec(axes)
        for size, axis, part in zip(shape, axes, self.parts(axes), strict=True):
            count = math.prod(mesh.shape[name] for name in part)
            if size % count:
                raise InputError(
                    f"sharding rules: {axis} of size {size} can't be spread over {count} devices ({part}); "
                    "choose another mesh or rules that keep it whole"
                )
        return NamedSharding(mesh, spec)

    def fitted(self, mesh: Mesh, sizes: Mapping[str, int]) -> "Rules":
        """Rules under which these logical axes use only the first of their mesh axes that divide them, and none a mesh
        axis of one device: JAX gives an output the sharding of any argument that says the same in other words, and
        programs are compiled anew for other words.

        Args:
          sizes: of logical axes that may lie whole on devices where they don't divide.
        """
        several = lambda part: tuple(name for name in part if mesh.shape[name] > 1)
        changed = {axis: several(part) for axis, part in dataclasses.asdict(self).items()}
        for axis, size in sizes.items():
            kept = changed[axis]
            while size % math.prod(mesh.shape[name] for name in kept):
                kept = kept[:-1]
            changed[axis] = kept
        return dataclasses.replace(self, **changed)

    def unused(self, mesh: Mesh, axes: Collection[str]) -> list[str]:
        """Mesh axes larger than 1 that none of these logical axes lies on."""
        used = {mesh_axis for part in self.parts(tuple(axes)) for mesh_axis in part}
        return [axis for axis, size in mesh.shape.items() if size > 1 and axis not in used]


_FSDP = Rules(
    batch=("data", "fsdp"),
    tiles=("data", "fsdp"),
    time=(),
    act_heads=(),
    act_mlp=(),
    act_vocab=(),
    embed=("fsdp",),
    heads=(),
    kv_heads=(),
    mlp=(),
    expert=("expert",),
    expert_embed=("fsdp",),
    vocab=(),
    vit_embed=("fsdp",),
    vit_heads=(),
    vit_mlp=(),
    layers=(),
)

# The vision tower stays fsdp in every preset: its heads need not divide by the tensor axis.
_FSDP_TP = dataclasses.replace(
    _FSDP,
    act_heads=("tensor",),
    act_mlp=("tensor",),
    act_vocab=("tensor",),
    heads=("tensor",),
    kv_heads=("tensor",),
    mlp=("tensor",),
    expert=("expert", "tensor"),
    vocab=("tensor",),
)

PRESETS = {
    "fsdp": _FSDP,
    "fsdp_tp": _FSDP_TP,
    # The expert axis spreads rows as well; parameters that are no expert's lie on it as they do on fsdp. It should have
    # no more devices than a token has experts (see `by_owner`).
    "moe": dataclasses.replace(
        _FSDP_TP,
        batch=("data", "fsdp", "expert"),
        tiles=("data", "fsdp", "expert"),
        embed=("fsdp", "expert"),
    ),
    # The tokens of a row lie on several devices, and so do its tiles: for rows that a device has no memory for.
    # Parameters lie on the context axis as they do on fsdp. Otherwise as "moe".
    "long_context": dataclasses.replace(
        _FSDP_TP,
        batch=("data", "fsdp", "expert"),
        tiles=("data", "fsdp", "expert", "context"),
        time=("context",),
        embed=("fsdp", "expert", "context"),
        expert_embed=("fsdp", "context"),
        vit_embed=("fsdp", "context"),
    ),
    # Serving: weights stay where they are, and activations travel. The vision tower is the exception: a device has its
    # share of the tiles, and gathers the weights, which are spread over all devices, a layer at a time. The expert axis
    # spreads rows and experts; other weights it repeats.
    "serve_tp": dataclasses.replace(
        _FSDP_TP,
        batch=("data", "expert"),
        tiles=("data", "expert", "tensor"),
        embed=(),
        vit_embed=("expert", "tensor"),
    ),
}

_ACTIVATIONS = ("batch", "tiles", "time", "act_heads", "act_mlp", "act_vocab")


def check_mesh(mesh: Mesh, rules: Rules, axes: Collection[str] | None = None) -> None:
    """Makes sure that every mesh axis larger than 1 spreads something.

    Args:
      axes: the logical axes of the model's parameters; None: all that there are.

    Raises:
      InputError: an axis spreads nothing.
    """
    known = {field.name for field in dataclasses.fields(Rules)}
    there = known if axes is None else {*_ACTIVATIONS, *axes}
    for axis in rules.unused(mesh, there):
        ours = next((f"the rules {name!r}" for name, preset in PRESETS.items() if preset == rules), "these rules")
        others = [name for name, preset in PRESETS.items() if axis not in preset.unused(mesh, there)]
        advice = f" or take rules that do ({', '.join(others)})" if others else ""
        raise InputError(
            f"mesh {axis}={mesh.shape[axis]}: {ours} spread nothing of this model over {axis!r}, so its devices would "
            f"all do the same work; leave {axis!r} out{advice}"
        )


_CONTEXT: contextvars.ContextVar[tuple[Mesh, Rules] | None] = contextvars.ContextVar("sharding", default=None)


@contextlib.contextmanager
def use(mesh: Mesh | None, rules: Rules | None) -> Iterator[None]:
    """While a function is traced inside, `shard` states where activations lie; with mesh None it does nothing.

    Raises:
      InputError: see `check_mesh`.
    """
    if mesh is not None and rules is not None:
        check_mesh(mesh, rules)
    token = _CONTEXT.set(None if mesh is None or rules is None else (mesh, rules))
    try:
        yield
    finally:
        _CONTEXT.reset(token)


def context() -> tuple[Mesh, Rules] | None:
    """The mesh and rules in use; None outside of `use`."""
    return _CONTEXT.get()


def platform() -> str | None:
    """The platform that a function is traced for: that of the mesh in use, else JAX's default.

    Devices of a mesh may be descriptions. None where there are several accelerators and nobody says how they share the
    work: then no kernel may be chosen.
    """
    if meshed():
        return context()[0].devices.flat[0].platform
    default = jax.default_backend()
    return default if default == "cpu" or jax.device_count() == 1 else None


def meshed() -> bool:
    """Whether a mesh and rules are in use."""
    return context() is not None


def shard(x: jax.Array, *axes: str | None) -> jax.Array:
    """x, with its logical axes stated: inside `use` it lies where the rules say."""
    if context() is None:
        return x
    mesh, rules = context()
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, rules.spec(axes)))


def spread(axis: str) -> int:
    """Over how many devices a logical axis is spread; 1 outside of `use`."""
    if context() is None:
        return 1
    mesh, rules = context()
    return math.prod(mesh.shape[name] for name in rules.parts((axis,))[0])


def copies(axis: str, size: int) -> int:
    """How often each part of a dimension must be there so that it can be spread as a logical axis is; 1 outside of
    `use`.
    """
    count = spread(axis)
    return count // math.gcd(count, size)


def whole(x: jax.Array) -> jax.Array:
    """x, inside `use` the whole of it on every device, so that every process can read it."""
    return shard(x, *(None,) * x.ndim)


def gather(x: jax.Array, axis: str) -> jax.Array:
    """Within `per_device`: what all devices have of the first dimension, which is spread as this logical axis is."""
    if context() is None or not (names := context()[1].parts((axis,))[0]):
        return x
    return jax.lax.all_gather(x, names, axis=0, tiled=True)


def per_device(function: Callable, inputs: tuple[tuple, ...], output: tuple) -> Callable:
    """`function`, run by every device on its part of the arguments; outside of `use` the function itself.

    Args:
      inputs, output: the logical axes of every argument and of the result, those of each part of a tuple; for an
        argument that is None they are not looked at.
    """
    if not meshed():
        return function
    mesh, rules = context()

    def spec(axes: tuple) -> P | tuple:
        return tuple(map(spec, axes)) if axes and isinstance(axes[0], tuple) else rules.spec(axes)

    return jax.shard_map(function, mesh=mesh, in_specs=spec(inputs), out_specs=spec(output), check_vma=False)
