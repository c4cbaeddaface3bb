"""The comparison with recorded references: tiles in blocks, and the launcher."""

import json

import numpy as np
import pytest

from checkpoint_convert.hf_config import read_config
from checkpoint_convert.released import load_bare
from internvl_jax.errors import InputError
from internvl_jax.evaluation.parity import blocks, compare, read_case
from tests import forks


@pytest.fixture
def config(golden):
    return read_config(golden / "hf_qwen3").model(None)  # four tokens a tile, image token 312


def test_blocks_keep_every_tile_in_its_row_and_order(config):
    tokens_BT = np.zeros((3, 14), int)
    tokens_BT[0, 1:5], tokens_BT[2, 2:10] = 312, 312  # one tile, none, two
    tiles = np.arange(3.0).reshape(3, 1, 1, 1) + np.ones((3, 2, 2, 3))
    blocked, mask = blocks(tokens_BT, tiles, config)
    assert blocked.shape == (6, 2, 2, 3)
    assert mask.tolist() == [True, False, False, False, True, True]
    assert blocked[:, 0, 0, 0].tolist() == [1, 0, 0, 0, 2, 3]


def test_blocks_refuse_another_number_of_tiles(config):
    with pytest.raises(InputError, match="4 tiles but tokens for 1"):
        blocks(np.full((1, 4), 312), np.zeros((4, 2, 2, 3)), config)


def test_text_only_rows_make_no_tiles(config):
    blocked, mask = blocks(np.zeros((2, 5), int), np.zeros((0, 2, 2, 3)), config)
    assert blocked.shape == (0, 2, 2, 3) and mask.shape == (0,)


def test_a_reference_of_another_model(golden):
    inputs, outputs, _ = read_case(golden / "vit6b_github")
    outputs["last_hidden_state"] = outputs["last_hidden_state"][:, :5]
    with pytest.raises(InputError, match="is recorded"):
        compare(load_bare(golden / "vit6b_github", "float32", None), inputs, outputs)


def test_no_reference(tmp_path):
    with pytest.raises(InputError, match=r"inputs\.npz .*golden case"):
        read_case(tmp_path)
    (tmp_path / "inputs.npz").write_bytes(b"PK but no archive")
    with pytest.raises(InputError, match=r"inputs\.npz"):
        read_case(tmp_path)


def test_the_launcher_prints_one_line_of_json(golden):
    case = golden / "vit6b_github"
    done = forks.python("-m", "launch.compare", f"--checkpoint={case}", f"--reference={case}")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert max(report.values()) < 1e-4 and "altrect_last_hidden_state" in report
    for flags in (["--adapter=x", "--quantise=int8"], ["--reference=x", "--quantise=mxfp4"]):
        done = forks.python("-m", "launch.compare", f"--checkpoint={case}", *flags)
        assert done.returncode == 1 and done.stderr.startswith("error: --quantise compares integers of 8 bits")
