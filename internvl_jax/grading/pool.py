"""Answers graded in worker processes, so that none of them can hold up or end a run."""

import concurrent.futures
import importlib.util
import logging
import math
import multiprocessing.context
import os
import resource
import sys
import threading
import time
import types
from collections.abc import Sequence
from typing import TYPE_CHECKING

from internvl_jax.errors import InputError
from internvl_jax.grading import math as mathematics
from internvl_jax.grading.rewards import MATHEMATICAL, Reward, Score, get_reward

if TYPE_CHECKING:
    import pebble

CHUNK = 32  # answers a task: a task takes a tenth of a millisecond, a cheap answer a hundredth
MEMORY = 2 << 30  # bytes of a worker that does mathematics: a power of powers takes all there is
BROKEN_POOLS = 10  # a call lives through as many; a machine that starts no process any more must not stop it for ever
_LOG = logging.getLogger(__name__)
_reward: Reward  # of a worker process


class Graders:
    """Grades answers with one reward, several at a time; a context manager that keeps its workers alive.

    A grader that raises, takes longer than `seconds` or ends its process costs that one answer: its score has `error`
    set, so that it can be left out, and the first of each kind is logged. A worker that hangs is killed and replaced.

    Args:
      reward: a name, as `rewards.get_reward` takes it.
      seconds: time limit of one answer.
      workers: processes. 0 grades in this process, with no time limit: for graders that can neither hang nor exit.

    Raises:
      InputError: no such reward, a library is missing, or a number makes no sense.
    """

    def __init__(self, reward: str, seconds: float, workers: int):
        if seconds <= 0 or workers < 0:
            raise InputError(f"graders need seconds above 0 and workers of at least 0, not {seconds} and {workers}")
        if workers and importlib.util.find_spec("pebble") is None:
            raise InputError("grading in worker processes needs the library pebble: pip install 'internvl_jax[rl]'")
        if reward in MATHEMATICAL:
            mathematics.require()
        self._reward, self._name = get_reward(reward), reward
        self._seconds, self._workers = seconds, workers
        self._pool: pebble.ProcessPool | None = None
        self._logged: set[str] = set()

    def __enter__(self) -> "Graders":
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            pool, self._pool = self._pool, None
            pool.stop()
            pool.join()

    def grade(self, responses: Sequence[str], truths: Sequence[str]) -> list[Score]:
        """The score of every response against its truth, in order."""
        pairs = list(zip(responses, truths, strict=True))
        scores = self._in_workers(pairs) if self._workers else [_graded(self._reward, *pair) for pair in pairs]
        for number, score in enumerate(scores):
            kind = score.error and score.error.partition(":")[0]
            if kind and kind not in self._logged:
                self._logged.add(kind)
                _LOG.warning(
                    "answer %d of %d is not graded: the grader %r %s (others like it are not logged)",
                    *(number, len(scores), self._name, score.error),
                )
        return scores

    def _in_workers(self, pairs: list[tuple[str, str]]) -> list[Score]:
        scores = [_failed("did not answer")] * len(pairs)
        # future: (its pool, first pair, last pair + 1)
        running: dict[concurrent.futures.Future, tuple[pebble.ProcessPool, int, int]] = {}
        broken: set[pebble.ProcessPool] = set()  # pools, by no fault of an answer: their answers get other ones

        def submit(start: int, stop: int) -> None:
            # A worker hands a chunk back once `seconds` are over: one that takes twice that has an answer that hangs.
            limit = self._seconds * (1 if stop - start == 1 else 2)
            pool = self._running_pool()
            future = pool.schedule(_grade_chunk, (pairs[start:stop], self._seconds), timeout=limit)
            running[future] = pool, start, stop

        # Four chunks a worker: some take longer than others.
        size = min(CHUNK, max(1, math.ceil(len(pairs) / (4 * self._workers))))
        for start in range(0, len(pairs), size):
            submit(start, min(start + size, len(pairs)))
        while running:
            done = concurrent.futures.wait(running, 1.0, return_when=concurrent.futures.FIRST_COMPLETED).done
            if not done:  # what is left in a broken pool never ends
                done = {future for future, (pool, *_) in running.items() if not pool.active}
            for future in done:
                pool, start, stop = running.pop(future)
                error = future.exception() if future.done() else concurrent.futures.BrokenExecutor("workers are gone")
                if error is None:
                    graded = future.result()
                    scores[start : start + len(graded)] = graded
                    if start + len(graded) < stop:
                        submit(start + len(graded), stop)
                elif isinstance(error, concurrent.futures.BrokenExecutor) and len(broken | {pool}) <= BROKEN_POOLS:
                    broken.add(pool)
                    submit(start, stop)
                elif stop - start == 1:
                    scores[start] = _failed(self._reason(error))
                else:  # one of them hung or ended the process: which one shows when they are graded one by one
                    for each in range(start, stop):
                        submit(each, each + 1)
        return scores

    def _running_pool(self) -> "pebble.ProcessPool":
        import pebble

        if self._pool is not None and not self._pool.active:  # an idle worker killed from outside breaks a pool
            self.__exit__()
        if self._pool is None:
            self._pool = pebble.ProcessPool(
                self._workers, initializer=_start, initargs=(self._name,), context=_BareContext()
            )
        return self._pool

    def _reason(self, error: BaseException) -> str:
        import pebble

        if isinstance(error, TimeoutError):
            return _late(self._seconds)
        if isinstance(error, pebble.ProcessExpired):
            return f"ended its process with exit code {error.exitcode}"
        return _raised(error)


class _BareProcess(multiprocessing.context.SpawnProcess):
    """A new process that doesn't import this one's main module: that would be a launcher, and JAX with it.

    New rather than forked: JAX's threads may hold locks, which nobody would release in a fork.
    """

    _one_at_a_time = threading.Lock()

    def start(self) -> None:
        with self._one_at_a_time:
            main = sys.modules["__main__"]
            sys.modules["__main__"] = types.ModuleType("__main__")
            try:
                super().start()
            finally:
                sys.modules["__main__"] = main


class _BareContext(multiprocessing.context.SpawnContext):
    Process = _BareProcess


def _start(name: str) -> None:
    """In a new worker. What fails here fails every answer; a worker that ended would be replaced for ever."""
    global _reward
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        _reward = get_reward(name)
        if name in MATHEMATICAL:
            mathematics.equal("x+1", "1+x")  # the first formula builds the parser's tables: not at an answer's cost
            resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, resource.getrlimit(resource.RLIMIT_DATA)[1]))
    except Exception as error:
        reason = f"could not start: {_raised(error)}"
        _reward = lambda response, truth: _failed(reason)


def _end_with_parent() -> None:
    """Pebble's workers end with their parent when idle; one that hangs would outlive a parent that was killed."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _grade_chunk(pairs: list[tuple[str, str]], seconds: float) -> list[Score]:
    """In a worker: the scores of as many pairs, from the first, as are begun within `seconds`; at least one."""
    scores = []
    start = begun = time.monotonic()
    for response, truth in pairs:
        score = _graded(_reward, response, truth)
        now = time.monotonic()
        scores.append(score if now - begun <= seconds else _failed(_late(seconds)))
        begun = now
        if now - start >= seconds:
            break
    return scores


def _graded(reward: Reward, response: str, truth: str) -> Score:
    try:
        score = reward(response, truth)
    except Exception as error:
        return _failed(_raised(error))
    if not isinstance(score, Score) or not math.isfinite(score.reward):
        return _failed(f"gave no finite Score: {score!r:.200}")
    return score


def _failed(reason: str) -> Score:
    return Score(0.0, 0.0, 0.0, reason)


def _late(seconds: float) -> str:
    return f"took longer than {seconds:g} s"


def _raised(error: BaseException) -> str:
    return f"raised {type(error).__name__}: {' '.join(str(error).split())[:200]}"
