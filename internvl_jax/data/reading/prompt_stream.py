"""The order in which a run meets its prompts: prompts n.. are a pure function of seed and position."""

import functools

import numpy as np

from internvl_jax.data.reading.prompts import Prompt, Prompts
from internvl_jax.errors import InputError

_EPOCH_STREAM = 3  # keeps these random numbers apart from those of a run's rows
_EPOCHS_KEPT = 2


class PromptStream:
    """The order in which a run meets its prompts: epoch after epoch, each a permutation of its own.

    numbers: the prompts of an epoch, as `screen_prompts` gives them. Nothing is remembered between calls but what is
    costly to compute, so a run resumes anywhere by its position.
    """

    def __init__(self, prompts: Prompts, numbers: np.ndarray, seed: int):
        if not len(numbers):
            raise InputError("no prompt is left to sample from; see what the log says was left out.")
        self.prompts, self._numbers, self._seed = prompts, np.asarray(numbers, np.int64), seed
        self._order = functools.lru_cache(_EPOCHS_KEPT)(self._shuffle)

    def __len__(self) -> int:
        """Prompts of an epoch."""
        return len(self._numbers)

    def numbers(self, count: int, position: int) -> np.ndarray:
        """Numbers int64 of `count` prompts after the first `position` of the run."""
        if position < 0 or count < 0:
            raise InputError(f"{count} prompts from position {position} on cannot be taken; both count from 0.")
        places = np.arange(position, position + count)
        epochs, within = np.divmod(places, len(self))
        return np.array([self._order(epoch)[k] for epoch, k in zip(epochs.tolist(), within, strict=True)], np.int64)

    def take(self, count: int, position: int) -> list[Prompt]:
        """The prompts of `numbers`."""
        return [self.prompts[number] for number in self.numbers(count, position).tolist()]

    def _shuffle(self, epoch: int) -> np.ndarray:
        return np.random.default_rng((self._seed, _EPOCH_STREAM, epoch)).permutation(self._numbers)
