"""The adapter of a request, as an engine knows it."""

from typing import NamedTuple

from internvl_jax.models import NO_PLACE


class Placed(NamedTuple):
    """An adapter in its place.

    Attributes:
      place: where the model has it.
      number: another one for each adapter that ever was there, 0 for none: what was computed with one is nobody else's.
    """

    place: int
    number: int


BASE = Placed(NO_PLACE, 0)
