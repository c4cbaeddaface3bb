"""How processes end, alone and in a pod of two: what they say and their exit codes."""

import os
import signal
import time

import pytest

from internvl_jax.errors import InputError, Stopped
from internvl_jax.pod.agreement import agree, lead
from internvl_jax.pod.pod import LOST, STOPPED
from tests.training import lives


def steps(pod, number, folder, fault=None):
    """A run that does nothing but count, every process at its own pace."""
    step = 0
    while not pod.stop(step):
        (folder / str(number)).write_text(str(step))
        if step == 5 and fault is not None:
            raise fault
        step += 1
        time.sleep(0.01 * (number + 1))
    raise Stopped(f"at {step}")


def input_in_1(pod, number, folder):
    steps(pod, number, folder, InputError("no such\nfile") if number else None)


def fault_in_0(pod, number, folder):
    steps(pod, number, folder, None if number else ZeroDivisionError("by zero"))


def other_data_in_1(pod, number, folder):
    agree("settings", {"config": {"run": {"rows": 8, "groups": (1, 2)}}})
    agree("data", {"digest": "ab" if number else "cd"})


def no_room_in_0(pod, number, folder):
    def claim():
        raise OSError(28, "No space left on device")

    lead("claiming the workdir", claim)


def reached(folder, number, step):
    path, ends = folder / str(number), time.monotonic() + 240
    while not path.exists() or int(path.read_text() or 0) < step:
        assert time.monotonic() < ends
        time.sleep(0.005)


def last_lines(said):
    return [text.splitlines()[-1] for text in said]


@pytest.mark.parametrize(("processes", "which"), [(1, 0), (2, 0), (2, 1)])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_all_at_one_step(tmp_path, processes, which, number):
    run = lives.Run(steps, processes, tmp_path)
    for each in range(processes):
        reached(tmp_path, each, 3)
    os.kill(run.ids[which], number)
    codes, said = run.ended()
    assert codes == [STOPPED] * processes
    assert len(set(last_lines(said))) == 1 and said[0].splitlines()[-1].startswith("stopped: at ")


def test_a_second_signal_ends_at_once(tmp_path):
    run = lives.Run(hang, 1, tmp_path)
    reached(tmp_path, 0, 1)
    os.kill(run.ids[0], signal.SIGTERM)
    time.sleep(0.2)
    os.kill(run.ids[0], signal.SIGINT)
    codes, said = run.ended()
    assert codes == [128 + signal.SIGINT]
    assert last_lines(said) == ["error: SIGINT came twice; what was not saved is lost"]


def hang(pod, number, folder):
    (folder / str(number)).write_text("1")
    time.sleep(60)  # as in a step that waits for a process that is gone


@pytest.mark.parametrize("killed", [0, 1])
def test_the_death_of_one_is_told_and_ends_the_others(tmp_path, killed):
    run = lives.Run(hang, 2, tmp_path)
    for each in range(2):
        reached(tmp_path, each, 1)
    started = time.monotonic()
    os.kill(run.ids[killed], signal.SIGKILL)
    codes, said = run.ended()
    assert time.monotonic() - started < 8  # the limit of silence; JAX's own is a minute later
    assert codes[killed] == -signal.SIGKILL and codes[1 - killed] == LOST
    ours = [line for line in said[1 - killed].splitlines() if line.startswith("error: ")]  # gRPC has lines of its own
    assert len(ours) == 1 and ours[0].startswith(f"error: process {killed} was lost (killed, or")


@pytest.mark.parametrize(
    ("work", "sentence"),
    [
        (input_in_1, "error: process 1: no such file"),
        (fault_in_0, "error: process 0: ZeroDivisionError: by zero"),
        (
            other_data_in_1,
            "the processes differ in their data (digest: 'ab' on process 1, 'cd' on process 0); start all",
        ),
        (no_room_in_0, "[Errno 28] No space left on device"),
    ],
)
def test_a_fault_of_one_is_what_all_say(tmp_path, work, sentence):
    codes, said = lives.Run(work, 2, tmp_path).ended()
    assert codes == [1, 1] and all(sentence in line and line.startswith("error: process ") for line in last_lines(said))
