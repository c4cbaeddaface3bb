"""Three processes that are killed and stopped at random, and where the time of a killed run goes: minutes long, for
`make soak` alone.
"""

import functools
import os
import random
import signal
import time

import numpy as np
import pytest

from internvl_jax import compilation_cache
from internvl_jax.pod.pod import LOST, STOPPED
from internvl_jax.training import train
from internvl_jax.training.run import hooks
from internvl_jax.training.run.goodput import read_record, summary
from tests.training import lives, toy
from tests.training.train_test import losses, stored

STEPS = 48


def work(data, pod, number, workdir):
    os.environ["XLA_FLAGS"] = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")
    compilation_cache.write_whole()
    train(toy.config(data, workdir, mesh="data=3", rows=6, steps=STEPS), pod.stop)


@pytest.mark.soak
def test_sigkill_and_sigterm_of_one_of_three_change_nothing(data, tmp_path):
    kills, rng = int(os.environ.get("INTERNVL_JAX_KILLS", "10")), random.Random(3)
    begin = lambda name: lives.Run(functools.partial(work, data), 3, tmp_path / name)
    assert begin("whole").ended()[0] == [0, 0, 0]
    within = 0
    for kill in range(kills):
        # Further on each time: who dies before all have come is told otherwise (`lines_test`).
        reached = max((kill + rng.random()) * (STEPS - 2) / kills, max(losses(tmp_path / "hurt"), default=0) + 0.5)
        which, number = rng.randrange(3), (signal.SIGKILL, signal.SIGTERM)[kill % 2]
        run = begin("hurt")
        while max(losses(tmp_path / "hurt"), default=0) < reached and run.alive():
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.05))
        before = time.monotonic()
        os.kill(run.ids[which], number)
        codes, said = run.ended()
        assert time.monotonic() - before < 30, said
        expected = [LOST] * 3 if number == signal.SIGKILL else [STOPPED] * 3
        expected[which] = -number if number == signal.SIGKILL else STOPPED
        assert codes == expected, said
        within += 0 < max(losses(tmp_path / "hurt"), default=0) < STEPS
    assert within
    assert begin("hurt").ended()[0] == [0, 0, 0]
    assert losses(tmp_path / "hurt") == losses(tmp_path / "whole")
    for (path, ours), (_, theirs) in zip(stored(tmp_path / "hurt"), stored(tmp_path / "whole"), strict=True):
        assert np.array_equal(ours, theirs), path


def timed(data, pod, number, workdir):
    """Writes when a run begins and ends, by a clock of its own."""
    clock = workdir.with_suffix(".times")
    with clock.open("a") as file:
        file.write(f"{time.time()}\n")
    train(toy.config(data, workdir, steps=120, save_every=10), pod.stop)
    with clock.open("a") as file:
        file.write(f"{time.time()}\n")


@pytest.mark.soak
def test_goodput_of_a_run_killed_three_times_is_what_a_stopwatch_says(data, tmp_path):
    """The stopwatch: for the whole this test's, for steps the loop's own `step_seconds`, from one line of metrics to
    the next: in whole parts between two checkpoints, as a step's line may come when the next step has ended.
    """
    workdir, rng = tmp_path / "hurt", random.Random(7)
    begin = lambda: lives.Run(functools.partial(timed, data), 1, workdir)
    for kill in range(3):
        run = begin()
        while max(losses(workdir), default=0) < 30 * kill + 17 and run.alive():
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.1))
        os.kill(run.ids[0], signal.SIGKILL)
        assert run.ended()[0] == [-signal.SIGKILL]
    assert begin().ended()[0] == [0]
    times = [float(line) for line in workdir.with_suffix(".times").read_text().split()]
    record = read_record(workdir)
    found = summary(record)
    assert found["starts"] == 4 and len(times) == 5 and found["lost_s"] > 0
    assert found["total_s"] == pytest.approx(times[-1] - times[0], rel=0.02)
    parts = set(range(12)) - {line["step"] // 10 for line in record if line["kind"] == "start"}
    assert len(parts) >= 6  # those that a start began with have its compiling in them
    first = lambda line: line["step"] if line["kind"] == "checkpoint" else line["step"] - 1
    kinds = ("step", "data", "host", "checkpoint")
    *within, _ = record  # at last files are closed, behind all steps
    inside = [line for line in within if line["kind"] in kinds and first(line) // 10 in parts]
    ours = sum(line["end"] - line["begin"] for line in inside)
    theirs = sum(line["step_seconds"] for line in hooks.read_metrics(workdir) if (line["step"] - 1) // 10 in parts)
    assert ours == pytest.approx(theirs, rel=0.02)
    good = sum(line["end"] - line["begin"] for line in record if line["kind"] == "step")
    assert good - found["lost_s"] == pytest.approx(found["step_s"], abs=0.1)
    assert found["goodput"] == pytest.approx(found["step_s"] / (times[-1] - times[0]), rel=0.02)
    print(found)
