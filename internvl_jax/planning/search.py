"""Which of the layouts of a training step recomputes least and fits: as few of them as can be are compiled.

A compile takes minutes, and arithmetic knows what a layout needs to a few gigabytes. So the search begins at the first
layout that should fit. What that one really needs says by how much the arithmetic is off, for all of them: the next one
is again the first that should fit, between the largest that is known to fit and the smallest that is known not to.
"""

from collections.abc import Callable
from typing import Any

from internvl_jax.planning.chips import Topology
from internvl_jax.planning.layouts import REMATS, arithmetic, training_layouts
from internvl_jax.training import TrainConfig

Layout = dict[str, Any]
Found = dict[str, Any]


def search(config: TrainConfig, where: Topology, compiled: Callable[[Layout], Found]) -> Found:
    """The plan of the first layout that fits, or of the one that needs least memory, where none does.

    Args:
      compiled: makes the plan of a layout.

    Raises:
      InputError: the rows can't be spread over the chips.
    """
    layouts = training_layouts(config, where)
    best: Found = {}
    too_much, enough = -1, len(REMATS)  # places in REMATS: of the last that doesn't fit, of the first that does
    while too_much + 1 < enough:
        between = [one for one in layouts if one["offload"] == "none" and too_much < _place(one) < enough]
        if not between:
            break
        found = compiled(between[0])
        if found["fits"]:
            best, enough = found, _place(between[0])
        else:
            too_much = _place(between[0])
            if too_much == len(REMATS) - 1:
                return found  # nothing needs less on the chip, not even what keeps more in its host's memory
        if (total := found["bytes_per_device"].get("total")) is not None:
            layouts = training_layouts(config, where, total - arithmetic(config, where, between[0]))
    return best if enough < len(REMATS) - 1 else _with_host(layouts, best, compiled)


def _with_host(layouts: list[Layout], best: Found, compiled: Callable[[Layout], Found]) -> Found:
    """The same, where what recomputes everything fits and nothing else does without the host's memory."""
    for layout in layouts:
        if layout["offload"] != "none" and (found := compiled(layout))["fits"]:
            return found
    return best


def _place(layout: Layout) -> int:
    return REMATS.index(layout["remat"])
