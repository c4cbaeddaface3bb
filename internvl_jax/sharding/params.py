"""How a parameter is declared, once: shape, logical axes, initializer, kind."""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

Kind = TypeVar("Kind", bound=nnx.Param)
Initializer = Callable[[jax.Array, tuple[int, ...], jnp.dtype], jax.Array]

_SHAPES_ALONE = contextvars.ContextVar("shapes_alone", default=False)


@contextlib.contextmanager
def shapes_alone() -> Iterator[None]:
    """Inside, parameters are zeros: tracing random draws is most of what `abstract` would do."""
    token = _SHAPES_ALONE.set(True)
    try:
        yield
    finally:
        _SHAPES_ALONE.reset(token)


def param(
    rngs: nnx.Rngs,
    shape: tuple[int, ...],
    axes: tuple[str | None, ...],
    init: Initializer,
    kind: type[Kind] = nnx.Param,
    **metadata: Any,
) -> Kind:
    """A float32 parameter of a kind, with a logical axis name (or None) for each dimension of `shape`.

    The names stand in metadata of our own (`axes`) rather than Flax's `out_sharding`: with the latter Flax wants a mesh
    in context wherever a parameter is made, also to evaluate shapes (flax 0.12, 2026-11).
    """
    if len(shape) != len(axes):
        raise ValueError(f"parameter of shape {shape} has axes {axes}; give one name per dimension")
    value = jnp.zeros(shape) if _SHAPES_ALONE.get() else init(rngs.params(), shape, jnp.float32)
    return kind(value, axes=axes, **metadata)
