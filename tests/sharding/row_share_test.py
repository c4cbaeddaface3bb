"""Every process loads the rows that its devices hold, whichever way a TPU's torus lays the mesh over its hosts."""

import itertools

import numpy as np
import pytest
from jax.sharding import NamedSharding

from internvl_jax.errors import InputError
from internvl_jax.sharding import PRESETS, make_mesh, row_share
from tests.sharding.mesh_test import Chip


@pytest.fixture(scope="module")
def chips():
    """A slice of 4 x 4 x 4, whose hosts have 2 x 2 x 1."""
    places = list(itertools.product(range(4), repeat=3))
    hosts = [(x // 2 * 2 + y // 2) * 4 + z for x, y, z in places]
    return [Chip(i, 0, place, process_index=host) for i, (place, host) in enumerate(zip(places, hosts, strict=True))]


@pytest.mark.parametrize(
    ("sizes", "rules", "count"),
    [
        ({"fsdp": 64}, "fsdp", 16),
        ({"fsdp": 16, "tensor": 4}, "fsdp_tp", 8),  # a host's chips are halves of two rows
        ({"fsdp": 16, "context": 4}, "long_context", 8),
        ({"fsdp": 4, "context": 4, "tensor": 4}, "long_context", 4),
        ({"data": 2, "fsdp": 8, "expert": 4}, "moe", 16),
    ],
)
def test_rows_of_a_pod_are_loaded_where_they_lie(chips, sizes, rules, count):
    mesh = make_mesh(sizes, chips)
    shares = [row_share(mesh, PRESETS[rules], process) for process in range(16)]
    assert {share.count for share in shares} == {count} and {share.index for share in shares} == set(range(count))
    assert sorted(itertools.chain(*{share.blocks for share in shares})) == list(range(shares[0].spread))
    rows = np.vectorize(lambda chip: chip.process_index)(mesh.devices).reshape(shares[0].spread, -1)
    for process, share in enumerate(shares):
        assert share.blocks == tuple(np.flatnonzero((rows == process).any(axis=1)))
        assert {other.blocks for other in shares if other.index == share.index} == {share.blocks}


def test_a_share_of_a_batch(chips):
    share = row_share(make_mesh({"fsdp": 64}, chips), PRESETS["fsdp"], 0)
    assert share.blocks != (0, 1, 2, 3)  # the torus's order is not the processes'
    batch = {"tokens_BT": np.arange(256).reshape(128, 2), "tile_mask_G": np.arange(384)}
    rows = [2 * block + row for block in share.blocks for row in (0, 1)]
    np.testing.assert_array_equal(share.of(batch)["tokens_BT"], batch["tokens_BT"][rows])
    np.testing.assert_array_equal(share.of(batch)["tile_mask_G"], batch["tile_mask_G"].reshape(128, 3)[rows].ravel())


@pytest.mark.parametrize("axis", ["batch", "tiles"])
def test_devices_get_their_parts_of_the_whole_batch(chips, axis):
    """Tiles are spread over the devices of a row, too."""
    mesh, rules = make_mesh({"fsdp": 16, "context": 4}, chips), PRESETS["long_context"]
    whole = np.arange(192)
    for chip, (part,) in NamedSharding(mesh, rules.spec((axis,))).devices_indices_map(whole.shape).items():
        share = row_share(mesh, rules, chip.process_index)
        np.testing.assert_array_equal(share.of(whole)[share.within(part, 192 // share.spread)], whole[part])


def test_rows_that_processes_hold_partly_together_are_refused():
    chips = [Chip(i, 0, (i, 0, 0), "cpu", process_index=i // 3) for i in range(6)]
    with pytest.raises(InputError, match="on the mesh fsdp=3,tensor=2 processes hold some rows together and others"):
        row_share(make_mesh({"fsdp": 3, "tensor": 2}, chips), PRESETS["fsdp_tp"], 0)
