"""Three processes that are killed and stopped at random: minutes long, for `make soak` alone."""

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
