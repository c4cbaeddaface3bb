"""Where the arrays of a batch lie: the letters of their names say which logical axes they have."""

import re
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from internvl_jax.sharding.rules import Rules

# Logical axis of every letter that names of batches' arrays end in (the key of letters: `internvl_jax.models`); None
# for what every device has whole. A digit is a dimension of that size.
_AXES = {
    "B": "batch",
    "T": "time",
    "G": "tiles",
    **dict.fromkeys(("J", "X", "L", "K", "H", "W", "C", "2")),
}


def name_axes(name: str) -> tuple[str | None, ...]:
    """Logical axes of an array of a batch by its name: ('batch', 'time') of `tokens_BT`.

    Raises:
      ValueError: the name does not end in letters, or in one that stands for no axis.
    """
    letters = re.fullmatch(r"[a-z_0-9]+_([A-Z0-9]+)", name)
    unknown = set(letters.group(1)) - _AXES.keys() if letters else "all"
    if unknown:
        raise ValueError(f"{name} in a batch: {unknown} name no axis; end it in some of {', '.join(_AXES)}")
    return tuple(_AXES[letter] for letter in letters.group(1))


def batch_shardings(batch: Any, mesh: Mesh, rules: Rules) -> Any:
    """The sharding of every array of a batch, which is a tree of named tuples and dicts.

    Raises:
      ValueError: an array whose name does not say its axes, one for each dimension.
    """

    def place(path: tuple, array: Any) -> NamedSharding:
        name = _name(path)
        axes = name_axes(name)
        if len(axes) != array.ndim:
            raise ValueError(f"{name} in a batch has {array.ndim} dimensions; give it a letter for each")
        return NamedSharding(mesh, rules.spec(axes))

    return jax.tree_util.tree_map_with_path(place, batch)


def _name(path: tuple) -> str:
    last = path[-1] if path else None
    if isinstance(last, jax.tree_util.GetAttrKey):
        return last.name
    return str(last.key) if isinstance(last, jax.tree_util.DictKey) else str(last)
