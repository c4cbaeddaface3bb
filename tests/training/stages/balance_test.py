"""How a step's tokens used the experts, by counts that can be made by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from internvl_jax.data import RowConfig, assemble_row
from internvl_jax.training.stages.balance import Balance
from internvl_jax.training.stages.terms import combine

LAYERS, EXPERTS, PER_TOKEN = 2, 4, 2


def rows(tokens):
    row = assemble_row([], RowConfig(8, 0, 12, 4, -1, "token"))
    return row._replace(segments_BT=(np.arange(8) < tokens)[None].astype(np.int32))


def sums(choices_LE, tokens):
    """Of a micro-batch of one row."""
    choices_LBE = jnp.asarray(choices_LE, jnp.float32)[:, None]
    return Balance(0.1, PER_TOKEN).terms({"load": (choices_LBE, choices_LBE / 8)}, rows(tokens))[1]


def test_metrics_of_two_micro_batches():
    whole = combine(sums([[3, 3, 0, 0], [2, 2, 1, 1]], 3), sums([[2, 2, 0, 0], [1, 1, 1, 1]], 2))
    found = Balance(0.1, PER_TOKEN).metrics(whole)
    # 10 choices a layer, 2.5 an expert: 5, 5, 0, 0 and 3, 3, 2, 2.
    expected = {
        "expert_load": 2.0,
        "least_expert_load": 0.0,
        "max_violation": (1.0 + 0.2) / 2,
        "idle_experts": 2 / 8,
        "dropped": 0,
    }
    assert {name: float(value) for name, value in found.items()} == pytest.approx(expected)


def test_choices_that_no_expert_took_are_counted():
    assert int(sums([[3, 3, 0, 0], [2, 1, 1, 1]], 3)["dropped"]) == 1
