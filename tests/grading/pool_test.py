"""Graders that raise, hang and exit cost their own answer only."""

import logging
import multiprocessing
import os
import resource
import signal
import sys
import types

import pytest

from internvl_jax.errors import InputError
from internvl_jax.grading import Graders
from internvl_jax.grading.pool import MEMORY

ACT = "tests.grading.graders:act"


@pytest.fixture(scope="module")
def graders(tmp_path_factory):
    """One pool for the module, in a program whose main module is a launcher."""
    script = tmp_path_factory.mktemp("main") / "main.py"
    script.write_text("import jax\n")
    main = types.ModuleType("__main__")
    main.__file__ = str(script)
    with pytest.MonkeyPatch.context() as patch, Graders(ACT, 0.5, 2) as graders:
        patch.setitem(sys.modules, "__main__", main)
        yield graders


def test_scores_come_in_order_and_workers_stay(graders):
    responses = [str(i) for i in range(100)]
    truths = [str(i if i % 3 else -1) for i in range(100)]
    first, second = graders.grade(responses, truths), graders.grade(responses, truths)
    assert [score.reward for score in first] == [float(i % 3 > 0) for i in range(100)]
    processes = {score.format for score in first + second}  # where it ran
    assert len(processes) <= 2 and os.getpid() not in processes
    assert graders.grade([], []) == []


def test_workers_live_without_jax(graders):
    assert [score.reward for score in graders.grade(["jax"] * 4, [""] * 4)] == [0.0] * 4


def test_what_goes_wrong_costs_one_answer(graders, caplog):
    bad = {
        3: ("raise", "raised RuntimeError: no idea"),
        7: ("exit", "ended its process with exit code 3"),
        8: ("sleep", "took longer than 0.5 s"),
        14: ("quit", "raised SystemExit: enough"),
        15: ("nan", "gave no finite Score"),
        20: ("number", "gave no finite Score: 1.0"),
        21: ("raise", "raised RuntimeError: no idea"),
    }
    responses = [bad[i][0] if i in bad else "right" for i in range(40)]
    with caplog.at_level(logging.WARNING):
        scores = graders.grade(responses, ["right"] * 40)
        scores += graders.grade(["raise", "right"], ["right"] * 2)
    wrong = {i: score.error for i, score in enumerate(scores) if score.error}
    assert wrong.keys() == {*bad, 40}
    assert all(wrong[i].startswith(reason) for i, (_, reason) in bad.items())
    assert all(score.reward == (i not in wrong) for i, score in enumerate(scores))
    logged = [record.getMessage() for record in caplog.records if record.name == "internvl_jax.grading.pool"]
    assert len(logged) == 5  # once a kind
    assert logged[0].startswith(f"answer 3 of 40 is not graded: the grader '{ACT}' raised RuntimeError: no idea")


def test_workers_killed_from_outside_are_replaced(graders):
    (score,) = graders.grade(["right"], ["right"])
    os.kill(int(score.format), signal.SIGKILL)
    scores = graders.grade(["right"] * 40, ["right"] * 40)
    assert [score.reward for score in scores] == [1.0] * 40


def test_no_formula_takes_all_time_or_memory():
    endless = r"<think></think>\boxed{(x+y+z)^{999}}"
    with Graders("mmpr", 1.0, 1) as graders:
        scores = graders.grade([r"\boxed{12}", endless, r"\boxed{1+x}"], ["12", "(x+y)^3+z", "x+1"])
        limits = {resource.prlimit(each.pid, resource.RLIMIT_DATA)[0] for each in multiprocessing.active_children()}
    assert [score.error for score in scores] == [None, "took longer than 1 s", None]
    assert scores[0].accuracy == scores[2].accuracy == 1
    assert MEMORY in limits


def test_without_workers(caplog):
    with Graders(ACT, 0.5, 0) as graders:
        scores = graders.grade(["right", "raise", "jax"], ["right"] * 3)
    assert [score.reward for score in scores] == [1.0, 0.0, float("jax" in sys.modules)]
    assert scores[0].format == os.getpid() and scores[1].error == "raised RuntimeError: no idea"


def test_numbers_that_make_no_sense():
    for seconds, workers in ((0.0, 1), (1.0, -1)):
        with pytest.raises(InputError, match="seconds above 0 and workers of at least 0"):
            Graders("exact", seconds, workers)
    with Graders("exact", 1.0, 0) as graders, pytest.raises(ValueError, match="argument"):
        graders.grade(["a"], [])
