"""Which adapters an engine has, and where."""

from collections.abc import Collection, Mapping

import numpy as np

from internvl_jax.errors import InputError
from internvl_jax.inference.engine.placed import BASE, Placed
from internvl_jax.inference.engine.runner import Runner
from internvl_jax.models import LoraConfig, for_one_place, stacks_of
from internvl_jax.validation import nearest


class AdapterTable:
    """Adapters by name, in the places of a runner's model."""

    def __init__(self, runner: Runner):
        self._runner = runner
        self._placed: dict[str, Placed] = {}
        self._last = 0

    @property
    def names(self) -> tuple[str, ...]:
        """Those that requests may name."""
        return tuple(self._placed)

    def find(self, name: str | None) -> Placed:
        """What a request asks for.

        Raises:
          InputError: there is no such adapter.
        """
        if name is None:
            return BASE
        if name not in self._placed:
            raise InputError(f"there is no adapter {name!r} here{nearest(name, self._placed)}")
        return self._placed[name]

    def put(self, name: str, lora: LoraConfig, params: Mapping[str, np.ndarray], used: Collection[Placed]) -> None:
        """A name means this adapter from now on, in a place that nobody uses.

        Args:
          lora, params: see `models.for_one_place`.
          used: what answers are being written with, whether it still has a name or not.

        Raises:
          InputError: see `models.for_one_place`; the model has no places, or all of them are taken.
        """
        if (places := self._runner.places) is None:
            raise InputError("the model has no places for adapters; give it some (models.with_places)")
        own = for_one_place(places, stacks_of(self._runner.params), lora, params)
        # What the name meant so far keeps its place only as long as it is written with.
        others = [placed for other, placed in self._placed.items() if other != name]
        taken = {placed.place for placed in (*others, *used)}
        place = next((place for place in range(places.count) if place not in taken), None)
        if place is None:
            raise InputError(
                f"all {places.count} places for adapters are taken; drop one, let its answers end, or start with more"
            )
        self._runner.adapt(place, own)
        self._last += 1
        self._placed[name] = Placed(place, self._last)

    def drop(self, name: str) -> None:
        """The name means nothing any more; answers that were asked for go on, and then its place is free.

        Raises:
          InputError: see `find`.
        """
        self.find(name)
        del self._placed[name]
