"""Batches by the letters of their names: every array lies where the rules say, or has a name that says nothing."""

import dataclasses
from typing import NamedTuple

import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from internvl_jax.data.rows.batch import Batch
from internvl_jax.data.rows.views import Views
from internvl_jax.sharding import PRESETS, batch_shardings, make_mesh
from internvl_jax.sharding.batches import name_axes
from internvl_jax.training.stages.gspo.objective import RolloutBatch
from internvl_jax.training.stages.mpo import Pairs

RULES = dataclasses.replace(PRESETS["fsdp"], time=("context",), tiles=("data",))


def rows(tiles=True):
    B, T, G = 8, 4, 16
    ints = np.zeros((B, T), np.int32)
    pixels = (np.zeros((G, 6, 6, 3), np.uint8), np.ones(G, bool)) if tiles else (None, None)
    return Batch(ints, ints, ints.astype(np.float32), ints, ints, *pixels, np.zeros((B, 3), np.int32))


def test_time_and_tiles_follow_the_rules():
    mesh = make_mesh({"data": 2, "fsdp": 2, "context": 2})
    views = Views(rows(), rows(tiles=False), rows().tokens_BT, np.ones((8, 3), bool), np.zeros((16, 2), np.int32))
    found = batch_shardings(views, mesh, RULES)
    row = P(("data", "fsdp"), ("context",))
    assert found.rows.tokens_BT.spec == found.student.weights_BT.spec == found.teacher_BT.spec == row
    assert found.rows.tiles_GHWC.spec == P(("data",)) and found.rows.tile_mask_G.spec == P(("data",))
    assert found.compress_BJ.spec == P(("data", "fsdp")) and found.measured_G2.spec == P(("data",))
    assert found.student.tiles_GHWC is None
    given = {"rows": rows(), "routes_BTLK": np.zeros((8, 4, 2, 3), np.int16)}
    assert batch_shardings(given, mesh, RULES)["routes_BTLK"].spec == P(*row)


def test_every_array_of_every_stage_names_its_axes():
    batches = {Batch, Views, Pairs, RolloutBatch}
    for batch in batches:
        for name in batch._fields:
            if name not in ("rows", "student"):  # batches in a batch
                assert name_axes(name)[0] in ("batch", "tiles"), name


class Wrong(NamedTuple):
    rows_BZ: np.ndarray


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (Wrong(np.zeros((8, 2))), "rows_BZ in a batch: {'Z'} name no axis"),
        ({"tokens": np.zeros((8, 2))}, "tokens in a batch"),
        ((np.zeros((8, 2)),), "in a batch"),
        ({"tokens_BT": np.zeros(8)}, "has 1 dimensions; give it a letter for each"),
    ],
)
def test_a_name_that_says_nothing_is_refused(batch, message):
    with pytest.raises(ValueError, match=message):
        batch_shardings(batch, make_mesh({"fsdp": 8}), RULES)
