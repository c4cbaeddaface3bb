"""Where time goes, with a clock that the tests move: what a stopwatch beside it says."""

import json
import logging
import threading
import types

import pytest

from internvl_jax.errors import InputError
from internvl_jax.training.run import watch
from internvl_jax.training.run.goodput import RECORD, read_record, summary
from internvl_jax.training.run.watch import Watch, Watching, input_line


class Clock:
    """Seconds as a test says; in the thread that waits for devices the end of what it waits for."""

    def __init__(self):
        self.now, self._thread = 1000.0, threading.local()

    def __call__(self):
        return vars(self._thread).get("at", self.now)

    def result(self, at):
        clock = self

        class Result:
            def block_until_ready(self):
                clock._thread.at = at
                return self

        return Result()


class Run:
    """A run as the loop makes it, whose devices take `step` seconds and whose host `take` for a batch."""

    def __init__(self, workdir, clock, step, take, samples=False, log_every=100):
        self.watch = Watch(workdir, log_every, Watching(stacks_after=0), samples, clock)
        self.clock, self.seconds, self.takes, self.free = clock, step, take, 0.0
        self.good = 0.0  # of the stopwatch

    def steps(self, first, last, compiling):
        """Steps first..last; the first one of a start compiles."""
        waiting = None
        for number in range(first, last + 1):
            with self.watch.step(number):
                with self.watch.taking(number):
                    self._pass(self.takes)
                if number == first:
                    self._pass(compiling)
                self.free = max(self.free, self.clock.now) + self.seconds
                self.watch.dispatched(number, self.clock.result(self.free))
            if waiting is not None:
                self._logged(*waiting)
            waiting = number, self.free
        self._logged(*waiting)

    def _pass(self, seconds):
        self.clock.now += seconds

    def _logged(self, number, free):
        self.clock.now = max(self.clock.now, free)
        self.watch.logged(number, 0.0)

    def save(self, number, seconds):
        with self.watch.interval("checkpoint", number):
            self._pass(seconds)


def test_a_run_that_is_killed_and_started_again(tmp_path):
    """Ten steps of 3 s, a checkpoint of 2 s after the fourth, killed after the sixth was logged, 60 s of nothing, on
    from the fourth: 30 good seconds, two steps lost.
    """
    clock = Clock()
    first = Run(tmp_path, clock, step=3.0, take=0.5)
    clock.now += 10  # the state is made
    first.steps(1, 4, compiling=20.0)
    first.save(4, 2.0)
    clock.now += 0.5  # the host does something else
    again = clock.now
    first.steps(5, 6, compiling=0.0)
    first.watch.close()
    with (tmp_path / RECORD).open("a") as file:  # a kill within a line
        file.write('{"kind": "st')
    lost = clock.now - again
    clock.now += 60
    second = Run(tmp_path, clock, step=3.0, take=0.5)
    clock.now += 10
    second.steps(5, 10, compiling=20.0)
    found = second.watch.summary()["goodput"]
    assert found["goodput"] == pytest.approx(30 / found["total_s"], abs=1e-4)
    # Data: the first batch of each start, and the one behind the checkpoint; other batches were made beside a step.
    assert found == {
        "goodput": found["goodput"],
        "total_s": pytest.approx(10 + 20 + 12 + 2 + 0.5 + lost + 60 + 10 + 20 + 18 + 3 * 0.5 - 0.5, abs=0.1),
        "starts": 2,
        "step_s": 30.0,
        "preparation_s": 20.0,
        "compiling_s": 40.0,
        "data_s": 1.5,
        "checkpoint_s": 2.0,
        "host_s": 0.5,
        "lost_s": 6.0,
        "down_s": pytest.approx(60, abs=0.1),
    }
    second.watch.close()


def test_devices_that_wait_for_batches(tmp_path, caplog):
    """A step of 1 s and batches of 4 s: devices wait 3 of every 4 seconds."""
    run = Run(tmp_path, Clock(), step=1.0, take=4.0, log_every=5)
    with caplog.at_level(logging.INFO, logger="internvl_jax"):
        run.steps(1, 10, compiling=0.0)
    found = run.watch.summary()["goodput"]
    assert (found["step_s"], found["data_s"], found["goodput"]) == (10.0, 4.0 + 9 * 3.0, round(10 / 41, 4))
    waits = [message.split(" of the time")[0] for message in caplog.messages]
    # 16 of the 24 s until the batch behind the fifth step is there, then 15 of 17: behind the last step comes none.
    assert waits == ["step 5: devices wait for data 67%", "step 10: devices wait for data 88%"]
    run.watch.close()


def test_sampling_is_no_waiting(tmp_path, caplog):
    run = Run(tmp_path, Clock(), step=1.0, take=4.0, samples=True, log_every=5)
    with caplog.at_level(logging.INFO, logger="internvl_jax"):
        run.steps(1, 10, compiling=0.0)
    found = run.watch.summary()["goodput"]
    assert (found["goodput"], found["sampling_s"], caplog.messages) == (1.0, 31.0, [])
    run.watch.close()


def test_a_run_that_has_ended_keeps_its_goodput(tmp_path):
    clock = Clock()
    run = Run(tmp_path, clock, step=3.0, take=0.5)
    run.steps(1, 4, compiling=20.0)
    before = run.watch.summary()
    run.watch.close()
    clock.now += 1000
    assert Run(tmp_path, clock, step=3.0, take=0.5).watch.summary() == before
    assert summary([])["goodput"] == 0


def test_a_damaged_line_of_the_record(tmp_path):
    line = {"kind": "nap", "step": 1, "begin": 0.0, "end": 1.0}
    (tmp_path / RECORD).write_text(json.dumps(line) + "\n" + json.dumps({**line, "kind": "step"}) + "\n")
    with pytest.raises(InputError, match=r"goodput\.jsonl:1\.kind .*; remove the line$"):
        read_record(tmp_path)


def test_the_slowest_of_several_processes_is_named():
    told = [[0.10, 0.0, 0.0, 3.0], [0.31, 0.2, 2.0, 9.5], [0.10, 0.0, 0.0, 3.0], [0.09, 0.0, 1.0, 3.0]]
    assert input_line(told) == (
        "a batch takes 0.10 s in the middle, 0.31 s on process 1, slow: 3.1 times that; 3 samples skipped, memory at "
        "most 9.5 GB; devices of process 1 wait for data 20% of the time; data.workers may help"
    )
    even = [[0.10, 0.0, 0.0, 3.0]] * 4
    assert "slow" not in input_line(even) and "wait" not in input_line(even)
    assert input_line([[5.0, 0.01, 0.0, 1.0]]) == input_line([]) == ""


def test_stacks_are_printed_where_a_step_does_not_end(tmp_path, capfd):
    """And no more once the run has ended."""
    run = Run(tmp_path, Clock(), step=1.0, take=0.0)
    run.watch._asked = Watching(stacks_after=0.05)
    run.steps(1, 1, compiling=0.0)
    threading.Event().wait(0.3)
    run.watch.close()
    said = capfd.readouterr().err
    assert "Timeout (0:00:00.05" in said and "test_stacks_are_printed" in said
    threading.Event().wait(0.2)
    assert not capfd.readouterr().err


@pytest.mark.parametrize("reached", ["nothing", "the state", "a batch", "the call"])
def test_stacks_are_printed_where_a_start_does_not_end(tmp_path, capfd, reached):
    """Reading the state, making the first batch, compiling the step, the first step itself."""
    made = Watch(tmp_path, 1, Watching(stacks_after=0.1))
    if reached != "nothing":
        made.begin(0, 10)
    if reached in ("a batch", "the call"):
        with made.step(1), made.taking(1):
            pass
    if reached == "the call":
        made.dispatched(1, Clock().result(0.0))
    capfd.readouterr()
    threading.Event().wait(0.4)
    made.close()
    assert "Timeout (0:00:00.1" in capfd.readouterr().err


def test_what_goes_on_has_its_time_anew(tmp_path, monkeypatch, caplog):
    """Each part of a start, a line that says how far a long one is, a step, a checkpoint."""
    armed = []
    monkeypatch.setattr(watch.faulthandler, "dump_traceback_later", lambda after, **how: armed.append(after))

    def counted(call, *given):
        before = len(armed)
        call(*given)
        return len(armed) - before

    made = Watch(tmp_path, 1, Watching(stacks_after=600.0))
    assert armed == [600.0]
    with caplog.at_level(logging.INFO, logger="internvl_jax"):
        assert counted(logging.getLogger("internvl_jax.data").info, "measured %d of 3 samples", 1) == 1
    assert counted(made.begin, 0, 10) == 1
    with made.step(1):
        taking = made.taking(1)
        taking.__enter__()
        assert counted(taking.__exit__, None, None, None) == 1
    assert counted(made.dispatched, 1, Clock().result(0.0)) == 1
    assert counted(made.logged, 1, 0.0) == 1
    saving = made.interval("checkpoint", 1)
    saving.__enter__()
    assert counted(saving.__exit__, None, None, None) == 1
    made.close()
    made.close()
    with caplog.at_level(logging.INFO, logger="internvl_jax"):
        assert counted(logging.getLogger("internvl_jax.data").info, "after the run") == 0


@pytest.mark.parametrize("text", ["10", "12:10", "0:3", "a:b", "1:2:3"])
def test_steps_to_profile_that_can_not_be(text):
    assert Watching.parse("10:12", 5.0) == Watching((10, 12), 5.0)
    assert Watching.parse(None, 0.0) == Watching(None, 0.0)
    with pytest.raises(InputError, match=r"write the first and the last, as 10:12$"):
        Watching.parse(text, 0.0)


class Devices:
    """What a trace would hold: devices end a step where somebody waits for it, or at the latest where it is logged."""

    def __init__(self, workdir, monkeypatch):
        self.events, clock = [], Clock()
        monkeypatch.setattr(watch.jax.profiler, "start_trace", lambda folder: self.events.append(f"start {folder}"))
        monkeypatch.setattr(watch.jax.profiler, "stop_trace", lambda: self.events.append("stop"))
        self.watch = Watch(workdir, 100, Watching((3, 4), 0.0), clock=clock)

    def steps(self, first, last):
        for number in range(first, last + 1):
            with self.watch.step(number), self.watch.taking(number):
                pass
            self.events.append(f"begun {number}")
            done = types.SimpleNamespace(block_until_ready=lambda: None)
            self.watch.dispatched(number, done)
            # The thread that waits has ended it: what `_settle` asks for.
            future = self.watch._running[number][-1]
            self.watch._running[number] = (*self.watch._running[number][:-1], _Told(future, number, self.events))
            if number > first:
                self.watch.logged(number - 1, 0.0)
        self.watch.logged(last, 0.0)
        self.watch.close()


class _Told:
    """A step's end, which says the first time that somebody waits for it."""

    def __init__(self, future, number, events):
        self._future, self._number, self._events = future, number, events

    def result(self):
        if f"ended {self._number}" not in self._events:
            self._events.append(f"ended {self._number}")
        return self._future.result()


def test_traces_hold_the_steps_that_were_asked_for_and_no_part_of_others(tmp_path, monkeypatch):
    """What a trace holds is seen in a run (`train_test`)."""
    devices = Devices(tmp_path, monkeypatch)
    devices.steps(2, 6)
    assert devices.events == [
        *("begun 2", "ended 2", f"start {tmp_path / 'profile'}"),
        *("begun 3", "begun 4", "ended 3", "ended 4", "stop"),
        *("begun 5", "begun 6", "ended 5", "ended 6"),
    ]


@pytest.mark.parametrize(("taken", "steps"), [(4, 10), (0, 2), (500, 1000)])
def test_a_start_without_the_steps_to_profile_says_so(tmp_path, monkeypatch, caplog, taken, steps):
    devices = Devices(tmp_path, monkeypatch)
    devices.watch.begin(taken, steps)
    asked = "steps 3 to 4 were asked for; give some of those"
    assert caplog.messages == [f"no profile: this start has steps {taken + 1} to {steps}, and {asked}"]
    devices.watch.close()


@pytest.mark.parametrize(("taken", "steps"), [(0, 10), (3, 4)])
def test_a_start_with_steps_to_profile_says_nothing(tmp_path, monkeypatch, caplog, taken, steps):
    devices = Devices(tmp_path, monkeypatch)
    devices.watch.begin(taken, steps)
    assert not caplog.messages
    devices.watch.close()
