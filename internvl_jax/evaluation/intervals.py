"""How far a figure may be off, with another draw of the questions."""

import collections
import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

# Sums over the questions of every stratum, by its name; see `headline_interval`.
Sums = Mapping[str, Sequence[float]]


def wilson(right: float, n: float, z: float = 1.959964) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927). Of scores between 0 and 1 that are no hits it is on the wide side."""
    middle, spread = right + z * z / 2, z * math.sqrt(max(0.0, right * (n - right) / n) + z * z / 4)
    return (middle - spread) / (n + z * z), (middle + spread) / (n + z * z)


def mean_interval(worth: Iterable[float], most: float = 100.0) -> tuple[float, float]:
    """The 95 % interval of the mean of scores from 0 to 1, of which `most` is made; all of it where there are none."""
    bounded = [min(1.0, max(0.0, float(each))) for each in worth]
    low, high = wilson(sum(bounded), len(bounded)) if bounded else (0.0, 1.0)
    return most * low, most * high


def headline_interval(
    units: Iterable[tuple[str, Sequence[float]]], figure: Callable[[Sums], float], most: float = 100.0
) -> tuple[float, float]:
    """The 95 % interval of a figure that is no share of the questions: Wilson's, of a share that would vary as much.

    How much the figure varies is its jackknife's variance: over what is left out of it, one unit at a time (Efron and
    Stein 1981), within strata. It is the same each time, and the figure always lies within.

    Args:
      units: what is drawn together: of each its stratum, which every draw has as often, and its terms of the sums.
      figure: of the sums of all units.
      most: the figure is between 0 and this.
    """
    counts = dict[str, collections.Counter[tuple[float, ...]]]()
    for stratum, terms in units:
        counts.setdefault(stratum, collections.Counter())[tuple(terms)] += 1
    sums = {stratum: _added(own) for stratum, own in counts.items()}
    variance, size = 0.0, 0
    for stratum, own in counts.items():
        number = own.total()
        size += number
        if number > 1:
            left = {terms: figure(sums | {stratum: _without(sums[stratum], terms)}) / most for terms in own}
            middle = sum(left[terms] * times for terms, times in own.items()) / number
            spread = sum((left[terms] - middle) ** 2 * times for terms, times in own.items())
            variance += spread * (number - 1) / number
    if not size:
        return 0.0, most
    share = min(1.0, max(0.0, figure(sums) / most))
    # Where nothing varies (all right, or all of each stratum alike) the number of units bounds what is known.
    alike = share * (1 - share) / variance if variance > 0 and 0 < share < 1 else size
    low, high = wilson(share * alike, alike)
    return most * low, most * high


def clusters(rows: Iterable[tuple[Hashable, Sequence[float]]]) -> list[tuple[float, ...]]:
    """The terms of rows, added up in each group of them."""
    found = dict[Hashable, tuple[float, ...]]()
    for group, terms in rows:
        found[group] = tuple(map(sum, zip(found[group], terms, strict=True))) if group in found else tuple(terms)
    return list(found.values())


def _added(counts: Mapping[tuple[float, ...], int]) -> tuple[float, ...]:
    return tuple(math.fsum(terms) for terms in zip(*([part * n for part in each] for each, n in counts.items())))


def _without(sums: Sequence[float], terms: Sequence[float]) -> tuple[float, ...]:
    return tuple(all_of - one for all_of, one in zip(sums, terms, strict=True))
