"""The order of a step's rows: which there are stays, and devices wait less for each other."""

import numpy as np
import pytest

from internvl_jax.data.rows.order import RowPlan, arrange
from internvl_jax.data.rows.packing import PackingConfig


def waiting(costs, devices, micro_batches):
    """What the fullest device costs as a multiple of the mean, micro-batch by micro-batch."""
    each = costs.reshape(devices, -1, micro_batches).sum(axis=1)
    return each.max(axis=0).sum() / each.mean(axis=0).sum()


def packed_costs(rows, seed):
    """Sums of squared lengths of rows of 32,768 tokens, packed of samples of log-normal lengths around 4,096."""
    lengths = np.random.default_rng(seed).lognormal(np.log(4096), 0.8, 40 * rows)
    lengths = np.minimum(lengths, 32768).astype(np.int64)
    samples = np.arange(len(lengths))
    plan = RowPlan(samples, lengths, np.zeros_like(lengths), PackingConfig(32768, 0, 20), pack=True, seed=seed)
    costs = np.array([plan.cost(row) for row in range(rows)])
    assert costs[0] == sum(int(lengths[sample]) ** 2 for sample in plan.samples(0))
    return costs


@pytest.mark.parametrize(("rows", "micro_batches"), [(8, 1), (12, 3), (64, 8), (96, 4)])
def test_a_step_keeps_its_rows(rows, micro_batches):
    costs = np.random.default_rng(rows).integers(1, 9, rows)
    assert sorted(arrange(costs, micro_batches)) == list(range(rows))


@pytest.mark.parametrize(("devices", "rows", "micro_batches"), [(64, 512, 8), (16, 512, 8), (8, 64, 1), (64, 256, 4)])
def test_devices_have_like_work(devices, rows, micro_batches):
    before, after = [], []
    for seed in range(3):
        costs = packed_costs(rows, seed)
        before.append(waiting(costs, devices, micro_batches))
        after.append(waiting(costs[arrange(costs, micro_batches)], devices, micro_batches))
    # A step takes as long beyond the mean as before at most, and half of it where there are rows to choose from.
    assert np.mean(after) - 1 < 0.5 * (np.mean(before) - 1), (before, after)
