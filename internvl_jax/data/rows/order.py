"""Which samples stand in row r of a run, for any r."""

import threading

import numpy as np

from internvl_jax.data.rows import packing
from internvl_jax.errors import InputError

_EPOCH_STREAM = 0  # keeps the random numbers of epochs apart from those of rows
_EPOCHS_KEPT = 2
# One lock for all plans: loader threads that reach a new epoch together plan it once. (A plan itself is pickled.)
_PLANNING = threading.Lock()


class RowPlan:
    """Epochs of rows: each epoch is its own permutation of the mixture, packed and then used up, leftovers included.

    Epochs differ a little in their number of rows, since packing depends on order. The first row of epoch e is known
    once the epochs before it have been planned; the last two plans stay in memory, so a step through the rows plans
    every epoch once.
    """

    def __init__(
        self,
        mixture: np.ndarray,
        tokens_I: np.ndarray,
        tiles_I: np.ndarray,
        config: packing.PackingConfig,
        *,
        pack: bool,
        seed: int,
    ):
        """mixture: sample numbers of an epoch, int64; tokens_I, tiles_I: lengths by sample number."""
        if not len(mixture):
            raise InputError("no sample is left to train on; see the samples that the log names as broken or dropped.")
        self._mixture, self._tokens_N, self._tiles_N = mixture, tokens_I, tiles_I
        self._config, self._pack, self._seed = config, pack, seed
        self._packs: dict[int, packing.Packs] = {}  # the packs of the epochs used last
        self._rows: dict[int, int] = {}  # rows of every epoch planned so far

    def samples(self, row: int) -> np.ndarray:
        """Sample numbers of row `row` of the run, in their order in the row."""
        epoch, index = self.locate(row)
        return self.packs(epoch)[index]

    def locate(self, row: int) -> tuple[int, int]:
        """(epoch, row within it)."""
        epoch = 0
        while row >= self.rows(epoch):
            row -= self.rows(epoch)
            epoch += 1
        return epoch, row

    def rows(self, epoch: int) -> int:
        """Rows of one epoch."""
        return self._rows[epoch] if epoch in self._rows else len(self.packs(epoch))

    def packs(self, epoch: int) -> packing.Packs:
        """What each row of an epoch holds."""
        with _PLANNING:
            if epoch not in self._packs:
                self._packs[epoch] = self._plan(epoch)
                self._rows[epoch] = len(self._packs[epoch])
                if len(self._packs) > _EPOCHS_KEPT:
                    del self._packs[next(iter(self._packs))]
            return self._packs[epoch]

    def statistics(self, epoch: int = 0) -> packing.FillStatistics:
        """How full the rows of an epoch are."""
        return packing.fill_statistics(self.packs(epoch), self._tokens_N, self._tiles_N, self._config)

    def cost(self, row: int) -> int:
        """What attention costs in a row: the sum of its samples' squared lengths."""
        return int(np.sum(np.square(self._tokens_N[self.samples(row)], dtype=np.int64)))

    def _plan(self, epoch: int) -> packing.Packs:
        order = np.random.default_rng((self._seed, _EPOCH_STREAM, epoch)).permutation(self._mixture)
        if not self._pack:
            return packing.Packs(order, np.arange(len(order) + 1))
        return packing.pack_lengths(order, self._tokens_N, self._tiles_N, self._config)


def arrange(costs: np.ndarray, micro_batches: int) -> np.ndarray:
    """An order of a step's rows in which devices that work side by side have like work, int64 `[rows]`.

    Which rows a step has is not touched, so its gradient is not either (but for the order of sums). The rows are sorted
    by cost and each micro-batch takes those next to each other: every device waits for the fullest, micro-batch by
    micro-batch. Within a micro-batch neighbours are taken from all over (van der Corput's sequence), so that however
    many devices share it, each with rows that stand together, their sums are alike.

    Args:
      costs: `[rows]`, what each row costs, in the order of the run.
      micro_batches: into how many parts the step is split; part j takes places j, j + micro_batches, ...
    """
    ranked = np.argsort(costs, kind="stable").reshape(micro_batches, -1)
    spaced = np.argsort([_reversed(place) for place in range(ranked.shape[1])], kind="stable")
    return ranked[:, spaced].T.reshape(-1)


def _reversed(number: int) -> float:
    """The binary digits of a number, mirrored behind the point: 0, 1/2, 1/4, 3/4, 1/8, ..."""
    digits = bin(number)[2:]
    return sum(int(digit) / 2 ** (place + 1) for place, digit in enumerate(reversed(digits)))
