"""How far a share may be off."""

import math


def wilson(right: float, n: int, z: float = 1.959964) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927). Of scores between 0 and 1 that are no hits it is on the wide side."""
    middle, spread = right + z * z / 2, z * math.sqrt(max(0.0, right * (n - right) / n) + z * z / 4)
    return (middle - spread) / (n + z * z), (middle + spread) / (n + z * z)
