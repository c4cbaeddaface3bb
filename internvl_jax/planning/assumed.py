"""What a plan takes for granted, and what it leaves out."""

import dataclasses
import functools
import math
import statistics

import numpy as np

from internvl_jax.data import packing
from internvl_jax.errors import InputError
from internvl_jax.models import TextConfig, seen_keys, share

NOT_MODELLED = (
    "waiting for data from the host",
    "pauses for checkpoints, validation and logs",
    "processes that are slower than others, and devices whose rows or experts have more to do",
    "the network between slices: what is sent there is priced as within one",
    "a chip's clock and power limits",
)
_DRAWN = 8192  # lengths that stand for a distribution
_ROWS, _OPEN = 256, 20  # rows that stand for all, and how many of them stay open while they are packed


@dataclasses.dataclass(frozen=True)
class Assumed:
    """What no compiler says and nobody timed.

    Attributes:
      kernel: the share of the peak that kernels reach where a head fills the matrix unit.
      latency: seconds that a transfer needs before its first byte has come.
      median: of the lengths of the samples that rows are packed of; None: a row is one sample.
      sigma: standard deviation of the logarithm of these lengths; 0: all are equal.
    """

    kernel: float = 0.6
    latency: float = 5e-6
    median: int | None = None
    sigma: float = 0.0

    def __post_init__(self) -> None:
        if not (0 < self.kernel <= 1 and 0 <= self.latency < 1):
            raise InputError(
                f"kernels at {self.kernel} of the peak and a latency of {self.latency} s can't be; the share is above "
                "0 and at most 1, the latency below a second"
            )
        if not (self.median is None or self.median >= 1) or not 0 <= self.sigma <= 5:
            raise InputError(
                f"lengths with median {self.median} and sigma {self.sigma} can't be; the median is a number of tokens, "
                "sigma from 0 to 5"
            )

    def lengths(self, budget: int) -> np.ndarray:
        """Lengths of samples, each as likely as the others; longer ones than a row's `budget` are cut to it."""
        if self.median is None:
            return np.array([budget])
        normal = statistics.NormalDist(0, 1)
        spread = [math.exp(self.sigma * normal.inv_cdf((number + 0.5) / _DRAWN)) for number in range(_DRAWN)]
        return np.clip(np.rint(self.median * np.array(spread)), 1, budget).astype(int)

    def seen(self, config: TextConfig, budget: int) -> float:
        """Keys that a token sees, on average over the tokens of full rows and over layers."""
        lengths = self.lengths(budget)
        so_far = np.cumsum(seen_keys(config, np.arange(budget, dtype=float)))
        return float(np.sum(so_far[lengths - 1]) / np.sum(lengths))

    def met(self, tokens: int, q_block: int, k_block: int, window: int | None) -> float:
        """Of the blocks that attention meets in a row of one sample, the share that it meets in the rows assumed, where
        it leaves out blocks of other segments.

        Args:
          window: how many tokens a query sees, its own included; None: all.
        """
        return 1.0 if self.median is None else _met(self, tokens, q_block, k_block, window)

    def describe(self, budget: int) -> dict[str, float | int | str | None]:
        """For who reads a plan: the lengths that it is for."""
        lengths = self.lengths(budget)
        how = "one sample a row" if self.median is None else "log-normal lengths, rows full"
        return {"how": how, "median": self.median, "sigma": self.sigma, "mean": round(float(np.mean(lengths)), 1)}


@functools.cache
def _met(assumed: Assumed, tokens: int, q_block: int, k_block: int, window: int | None) -> float:
    """See `Assumed.met`; rows are packed as a run packs them."""
    lengths = np.random.default_rng(0).permutation(assumed.lengths(tokens))
    lengths = lengths[np.cumsum(lengths) <= _ROWS * tokens]
    rows = list(packing.pack(((length, 0) for length in lengths.tolist()), packing.PackingConfig(tokens, 0, _OPEN)))
    segments_BT = np.zeros((len(rows), tokens), np.int32)
    for row_T, samples in zip(segments_BT, rows, strict=True):
        row_T[: sum(lengths[samples])] = np.repeat(np.arange(len(samples)) + 1, lengths[samples])
    return float(share(segments_BT, q_block, k_block, window))


DEFAULT = Assumed()
