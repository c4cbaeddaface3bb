"""Checkpoints of a run: the last whole one is restored, and what is not a checkpoint is named or passed over."""

import gc
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from internvl_jax.errors import InputError
from internvl_jax.training.run.checkpoints import Checkpoints
from internvl_jax.training.run.state import TrainState


def state(step: int) -> TrainState:
    value = jnp.asarray(np.random.default_rng(step).normal(size=(60, 64)), jnp.float32).at[0, 0].set(step)
    return TrainState(jnp.asarray(step), {"a": value}, {"moment": value}, jnp.asarray(0), {})


ABSTRACT = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state(0))


def restored(workdir) -> int:
    with Checkpoints(workdir, 2, 0) as checkpoints:
        found, data = checkpoints.restore(ABSTRACT)
        assert data == {"rows": int(found.step)} and found.params["a"][0, 0] == found.step
        return int(found.step)


@pytest.fixture
def workdir(tmp_path):
    """Of a run that saved steps 4 and 6."""
    with Checkpoints(tmp_path, 2, 0) as checkpoints:
        for step in (4, 6):
            checkpoints.save(step, state(step), {"rows": step})
    return tmp_path


def test_what_only_resembles_a_step_is_passed_over(workdir):
    for name in ("7", "5", "008", "9.partial", "best", "²"):
        (workdir / "checkpoints" / name).mkdir()
    (workdir / "checkpoints" / "008" / "notes").touch()
    (workdir / "checkpoints" / "notes.txt").touch()
    assert restored(workdir) == 6
    with Checkpoints(workdir, 2, 0) as checkpoints:
        checkpoints.save(7, state(7), {"rows": 7})
    assert restored(workdir) == 7
    names = {path.name for path in (workdir / "checkpoints").iterdir()}
    assert names == {"6", "7", "008", "9.partial", "best", "²", "notes.txt"}


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.write_text("a file"),
        lambda path: path.symlink_to("nowhere"),
        lambda path: (path.mkdir(), (path / "notes").touch()),
    ],
)
@pytest.mark.parametrize("step", ["5", "9"])
def test_what_is_not_ours_under_a_step_s_name_is_named_and_kept(workdir, make, step):
    make(workdir / "checkpoints" / step)
    with pytest.raises(InputError, match=rf"checkpoints/{step} has the name of a checkpoint and is none; move it away"):
        restored(workdir)
    assert (workdir / "checkpoints" / step).lstat()


def test_a_workdir_that_no_checkpoint_can_have_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"'\[' in its name, which checkpoints can't have"):
        Checkpoints(tmp_path / "run[3]", 1, 0)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def leftovers():
    """Orbax leaves readers of other arrays behind when one fails; they end with the test."""
    yield
    gc.collect()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_damaged_step_is_one_sentence(workdir, leftovers):
    step = workdir / "checkpoints" / "6"
    advice = "; remove that step to go on from the one before"
    data = max(step.glob("optimizer/*/d/*"), key=lambda path: path.stat().st_size)
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 4
    data.write_bytes(content)
    with pytest.raises(InputError, match=rf"^{re.escape(str(step))} is damaged or incomplete \([^\n]*\){advice}$"):
        restored(workdir)
    (position,) = (path for path in step.glob("position/*") if path.is_file() and b"rows" in path.read_bytes())
    position.write_text(json.dumps([]))
    with pytest.raises(InputError, match=f"is damaged or incomplete .*{advice}"):
        restored(workdir)
    position.write_text("{")
    with pytest.raises(InputError, match=rf"6/position/{position.name} is damaged or incomplete .*{advice}"):
        restored(workdir)
