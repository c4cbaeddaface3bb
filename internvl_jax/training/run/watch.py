"""What a run lets others see of itself while it goes: a profile of some steps, where its time goes (`goodput`), which
process is slow, and where every thread stands when a step doesn't end.
"""

import concurrent.futures
import contextlib
import dataclasses
import faulthandler
import logging
import pathlib
import re
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

from internvl_jax.errors import InputError
from internvl_jax.pod import Gauges
from internvl_jax.training.run.goodput import Goodput, Kind, read_record, summary

_LOG, _ROOT = logging.getLogger(__name__), logging.getLogger("internvl_jax")
PROFILE = "profile"  # the folder of traces in a workdir
_SLOW = 1.5  # times as long as in the middle
_WAITING = 0.05  # share of the time, from which on waiting for data is worth a line


@dataclasses.dataclass(frozen=True)
class Watching:
    """What is asked for.

    Attributes:
      profile: the first and the last step of a trace, counted from 1; None: no trace.
      stacks_after: seconds without a step's end, nor another sign of life, after which every thread's stack is printed,
        again and again; 0: never.
    """

    profile: tuple[int, int] | None = None
    stacks_after: float = 600.0

    @classmethod
    def parse(cls, profile: str | None, stacks_after: float) -> "Watching":
        """From the text of a launcher's flag, as '10:12'.

        Raises:
          InputError: it can't be read.
        """
        if not profile:
            return cls(None, stacks_after)
        found = re.fullmatch(r"(\d{1,9}):(\d{1,9})", profile)
        if not found or not 1 <= int(found.group(1)) <= int(found.group(2)):
            raise InputError(f"the steps to profile are {profile!r}; write the first and the last, as 10:12")
        return cls((int(found.group(1)), int(found.group(2))), stacks_after)


DEFAULT = Watching()


class _Listener(logging.Handler):
    """Calls a function at every line of the log."""

    def __init__(self, heard: Callable[[], None]):
        super().__init__()
        self._heard = heard

    def emit(self, record: logging.LogRecord) -> None:
        self._heard()


class Watch:
    """Used by the loop of a run on every process: `begin` once, and in this order for every step `step` around `taking`
    and `dispatched`, and later `logged`, when the step's metrics have come. What doesn't end is watched for from the
    making of a watch to its `close`.

    Args:
      workdir: where traces and the record of time are written, by process 0, from the first step on.
      log_every: the steps between lines about input.
      asked: what else is asked for.
      samples: whether taking a batch is sampling from the model, and no waiting for data.
      clock: seconds since the epoch.
      begun: when the run began, by that clock; None: now.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        log_every: int,
        asked: Watching,
        samples: bool = False,
        clock: Callable[[], float] = time.time,
        begun: float | None = None,
    ):
        self._workdir, self._log_every, self._asked, self._clock = workdir, log_every, asked, clock
        self._leads, self._gauges = jax.process_index() == 0, Gauges()
        self._kind: Kind = "sampling" if samples else "data"
        self._begun = self._shown = clock() if begun is None else begun
        self._record: Goodput | None = None
        self._profiled, self._tracing, self._compiled = False, False, False
        # When the arrays of a step are there only a thread can tell that waits for them: this one may make a batch.
        self._waiter = concurrent.futures.ThreadPoolExecutor(1, "watch")
        self._taken: tuple[float, float] = self._begun, self._begun
        self._running: dict[int, tuple[float, float, float, concurrent.futures.Future[float]]] = {}
        self._free = self._begun  # when the last step that is known to have ended did
        self._stops: list[tuple[float, float]] = []  # begin and end of what stopped the steps
        self._took: list[float] = []
        self._waited: list[float] = []
        self._listener = _Listener(self.alive)
        _ROOT.addHandler(self._listener)
        self.alive()

    def alive(self) -> None:
        """Something has ended that may take long, or a line of the log says how far it is: the time after which stacks
        are printed begins anew.
        """
        if self._asked.stacks_after:
            faulthandler.dump_traceback_later(self._asked.stacks_after, repeat=True, file=sys.__stderr__)

    def begin(self, taken: int, steps: int) -> None:
        """Before the first step of a start, which goes on after `taken` steps of `steps`."""
        self.alive()
        first, last = self._asked.profile or (taken + 1, steps)
        if self._leads and (last <= taken or first > steps):
            _LOG.warning(
                "no profile: this start has steps %d to %d, and steps %d to %d were asked for; give some of those",
                *(taken + 1, steps, first, last),
            )

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Around a step's batch and its dispatch; steps are counted from 1."""
        first, last = self._asked.profile or (0, 0)
        if self._tracing and number > last:
            self._settle()
            self._stop_trace()
        if self._leads and not self._profiled and first <= number <= last:
            self._settle()
            _LOG.info("profiling steps %d to %d", number, last)
            jax.profiler.start_trace(str(self._workdir / PROFILE))
            self._profiled = self._tracing = True
        with jax.profiler.StepTraceAnnotation("train", step_num=number):
            yield

    def _settle(self) -> None:
        """Waits for the steps that devices are still at, so that a trace has whole steps, those that it is of."""
        for *_, ended in self._running.values():
            ended.result()

    @contextlib.contextmanager
    def taking(self, number: int) -> Iterator[None]:
        """Around the making of a step's batch."""
        begin = self._clock()
        if not self._compiled:
            self._record = Goodput(self._workdir) if self._leads else None
            self._add("start", number - 1, self._begun, self._begun)
            self._add("preparation", number, self._begun, begin)
            self._free = begin
        yield
        self._taken = begin, self._clock()
        self.alive()

    def dispatched(self, number: int, result: Any) -> None:
        """After the call of the step, which `result` is of; the first call has compiled it."""
        begin, taken = self._taken
        called = taken
        if not self._compiled:
            called = self._clock()
            self._add("compiling", number, taken, called)
            self._compiled = True
            self.alive()
        self._running[number] = begin, taken, called, self._waiter.submit(self._ended, result)

    def _ended(self, result: Any) -> float:
        jax.block_until_ready(result)
        return self._clock()

    def logged(self, number: int, skipped: float) -> None:
        """After the metrics of a step have come.

        Args:
          skipped: samples that could not be used so far, on this process.
        """
        begin, taken, called, ended = self._running.pop(number)
        end, waited = ended.result(), max(0.0, taken - max(begin, self._free))
        stopped = sum(to - since for since, to in self._stops if self._free <= since and to <= begin)
        self._stops = [one for one in self._stops if one[1] > begin]
        if (host := begin - self._free - stopped) > 0:
            self._add("host", number, self._free, self._free + host)
        if waited:
            self._add(self._kind, number, taken - waited, taken)
        self._add("step", number, max(called, self._free), end)
        self._free = end
        self._took.append(taken - begin)
        self._waited.append(waited if self._kind == "data" else 0.0)
        if number % self._log_every == 0:
            self._show(number, skipped)
        if self._tracing and number >= self._asked.profile[1]:
            self._stop_trace()
        self.alive()

    def _show(self, number: int, skipped: float) -> None:
        """A line about input, from what all processes tell."""
        now, steps = self._clock(), len(self._took)
        share = sum(self._waited) / max(1e-9, now - self._shown)
        memory = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e9
        told = self._gauges.tell([sum(self._took) / steps, share, skipped, memory])
        self._shown, self._took, self._waited = now, [], []
        if line := input_line(told):
            _LOG.info("step %d: %s", number, line)

    @contextlib.contextmanager
    def interval(self, kind: Kind, number: int) -> Iterator[None]:
        """Around what stops the steps: a checkpoint, a measurement."""
        begin = self._clock()
        yield
        self._stops.append((begin, self._clock()))
        self._add(kind, number, *self._stops[-1])
        self.alive()

    def _add(self, kind: Kind, number: int, begin: float, end: float) -> None:
        if self._record is not None:
            self._record.add(kind, number, begin, end)

    def _stop_trace(self) -> None:
        jax.profiler.stop_trace()
        self._tracing = False
        _LOG.info("the profile is in %s; xprof and TensorBoard show it", self._workdir / PROFILE)

    def summary(self) -> dict[str, Any]:
        """Where the time went, over all starts; on process 0."""
        return {"goodput": summary(read_record(self._workdir))} if self._leads else {}

    def close(self) -> None:
        """Ends the watching; once more does nothing."""
        _ROOT.removeHandler(self._listener)
        faulthandler.cancel_dump_traceback_later()
        if self._tracing:
            self._stop_trace()
        self._waiter.shutdown(wait=False)
        if self._record is not None:
            self._record.close()


def input_line(told: list[list[float]]) -> str:
    """What is worth saying of the input of a run: with several processes which of them is slowest, and always how much
    of the time devices wait for data, if it is much.

    Args:
      told: of every process the seconds that it takes for a batch, the share of the time that devices waited for these,
        samples that could not be used, gigabytes of memory at most.
    """
    if not told:
        return ""
    took, shares, skipped, memory = zip(*told, strict=True)
    parts = []
    slowest, middle = max(range(len(told)), key=lambda number: took[number]), statistics.median(took)
    if len(told) > 1:
        slow = f", slow: {took[slowest] / middle:.1f} times that" if took[slowest] > _SLOW * middle > 0 else ""
        parts.append(f"a batch takes {middle:.2f} s in the middle, {took[slowest]:.2f} s on process {slowest}{slow}")
        parts.append(f"{sum(skipped):.0f} samples skipped, memory at most {max(memory):.1f} GB")
    if max(shares) > _WAITING:
        waits = max(range(len(told)), key=lambda number: shares[number])
        which = f" of process {waits}" if len(told) > 1 else ""
        parts.append(f"devices{which} wait for data {shares[waits]:.0%} of the time; data.workers may help")
    return "; ".join(parts)
