"""One loop for every stage.

1. Config, processor and data are checked before anything is built, and compared between processes; the resolved config
   goes into the workdir.
2. The state is made on its devices: restored from the workdir, or read from `run.init_from`, or random.
3. Every step, in this order: save the state if it is due or the run is to stop, take the next batch, dispatch the step,
   then read the metrics of the step before, so that the host works while the devices do. (A saved data position belongs
   to the saved state because no batch is taken between the two.)
"""

import contextlib
import dataclasses
import logging
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax

from internvl_jax.data import Processor
from internvl_jax.errors import InputError, Stopped
from internvl_jax.models import PEAK, train_flops
from internvl_jax.pod import agree, lead, versions
from internvl_jax.sharding import Params
from internvl_jax.training.config import RunConfig, TrainConfig
from internvl_jax.training.run import hooks, setup
from internvl_jax.training.run.checkpoints import Checkpoints
from internvl_jax.training.run.initial import read_base, read_initial, read_reference
from internvl_jax.training.run.optim import schedule
from internvl_jax.training.run.program import Program
from internvl_jax.training.run.setup import build
from internvl_jax.training.run.state import TrainState
from internvl_jax.training.run.watch import DEFAULT, Watch, Watching
from internvl_jax.training.stages.base import Start
from internvl_jax.training.stages.registry import STAGES

_LOG = logging.getLogger(__name__)
_MOST_IDLE = 10  # steps in a row in which nothing is supervised, before a run stops


def train(
    config: TrainConfig, stop: Callable[[int], bool] = lambda step: False, asked: Watching = DEFAULT
) -> dict[str, Any]:
    """Runs a stage to its last step, resuming from the workdir if it holds a checkpoint.

    Args:
      stop: asked before every step, with the steps taken, whether to save and end here; says the same on every process.
      asked: what the run is to let others see while it goes.

    Returns:
      a summary: steps, last loss, seconds, workdir; on process 0 where the time went, over all starts ('goodput').

    Raises:
      InputError: a config, data or workdir that can't be used, or is in use; a loss that stays non-finite.
      Stopped: the run was stopped, and its state is saved.
    """
    begun = time.time()
    config, processor = setup.prepare(config)
    agree("settings", {"config": dataclasses.asdict(config), "versions": versions()})
    with setup.hold_workdir(config.run.workdir):
        watch = Watch(
            pathlib.Path(config.run.workdir), config.run.log_every, asked, STAGES[config.objective].samples, begun=begun
        )
        with contextlib.closing(watch):
            return _train(config, processor, stop, watch)


def _train(config: TrainConfig, processor: Processor, stop: Callable[[int], bool], watch: Watch) -> dict[str, Any]:
    run, stage, workdir = config.run, STAGES[config.objective], pathlib.Path(config.run.workdir)
    program = build(config)
    for line in setup.describe(config, program.mesh):
        _LOG.info(line)
    source = setup.open_source(config, program, processor)
    agree("data", {"digest": source.digest})
    held_out = setup.open_held_out(config, program, processor)
    lead("claiming the workdir", lambda: setup.claim_workdir(config, processor))
    with Checkpoints(workdir, run.keep_last, run.keep_every, program.saved) as checkpoints:
        state, position = _initial_state(program, checkpoints, run.init_from, stage.start is Start.BASE)
        reference = read_reference(setup.reference_of(config), program, run.init_from) if stage.refers else None
        source.start(position)
        first = saved = int(state.step)
        watch.begin(first, run.steps)
        rate = schedule(config.optim, run.steps)
        started = time.perf_counter()
        meter = Meter(workdir, first, run, stage.columns, rate, program, watch)
        pending = None
        _LOG.info("compiling the first step")
        try:
            for step in range(first, run.steps):
                stopping = stop(step)
                if step > saved and (stopping or step % run.save_every == 0):
                    meter.log(*pending)  # a kill after the save must not lose the metrics of a saved step
                    pending = None
                    with watch.interval("checkpoint", step):
                        checkpoints.save(step, state, source.position())
                    saved = step
                if stopping:
                    with watch.interval("checkpoint", step):
                        checkpoints.wait()
                    held = f", which {workdir} holds" if step else ""
                    raise Stopped(f"the same command goes on from step {step} of {run.steps}{held}")
                with watch.step(step + 1):
                    with watch.taking(step + 1):
                        batch = program.place(source.take(state))
                    with jax.transfer_guard("disallow"):  # whatever still lies on the host would be copied every step
                        state, metrics = program.step(state, batch, reference)
                    watch.dispatched(step + 1, metrics["loss"])
                if pending is not None:
                    meter.log(*pending)
                notes = source.notes()
                if held_out is not None and ((step + 1) % run.validate_every == 0 or step + 1 == run.steps):
                    notes["validation_loss"] = meter.apart(step + 1, held_out.loss, state.params)
                    _LOG.info("step %d: validation loss %.4f", step + 1, notes["validation_loss"])
                pending = (step + 1, metrics, notes)
            if pending is not None:
                meter.log(*pending)
            if run.steps > saved:
                with watch.interval("checkpoint", run.steps):
                    checkpoints.save(run.steps, state, source.position())
                    checkpoints.wait()
        finally:
            with watch.interval("host", saved):
                source.close()
                meter.close()
            watch.close()
    seconds = round(time.perf_counter() - started, 1)
    return {**meter.summary(), **watch.summary(), "seconds": seconds, "workdir": str(workdir)}


def _initial_state(program: Program, checkpoints: Checkpoints, init_from: str, extend: bool) -> tuple[TrainState, Any]:
    """The state that a run goes on from, and the position of its data."""
    if checkpoints.latest is not None:
        state, position = checkpoints.restore(program.abstract)
        if len(program.saved) < len(program.abstract.params):
            state = state._replace(params=state.params | read_base(init_from, program))
        return state, position
    params = read_initial(init_from, program, extend) if init_from else program.random_params()
    return program.from_params(params), None


class Meter:
    """Metrics of every step on the host: rates, utilisation, the guard against a run that no longer learns.

    Args:
      workdir: where they are written.
      step: the steps taken so far.
      run: has the number of steps, how often to show them, and how many in a row may be non-finite.
      columns: the stage's metrics to show.
      rate: the learning rate by step.
      program: says how many operations a step has, and the peak that these are compared with.
      watch: is told when a step's metrics have come.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        step: int,
        run: RunConfig,
        columns: Sequence[str],
        rate: optax.Schedule,
        program: Program,
        watch: Watch,
    ):
        self._run, self._rate, self._program, self._watch = run, rate, program, watch
        self._peak = PEAK.get(program.mesh.devices.flat[0].device_kind, 0) * program.mesh.size
        self._writes = jax.process_index() == 0  # one process writes for all
        if self._writes:
            shown = ("loss", *columns, "grad_norm", "learning_rate", "tokens_per_second", "mfu")
            self._log, self._progress = hooks.MetricsLog(workdir, step), hooks.Progress(step, run.steps, shown)
            self._picture = hooks.Picture(
                workdir,
                (*shown, "validation_loss", "imbalance", "blocks_left_out", "expert_load", "max_violation", "dropped"),
            )
        self._clock, self._idle = time.perf_counter(), 0
        self._last: dict[str, Any] = {"step": step, "loss": None}

    def log(self, step: int, metrics: dict[str, jax.Array], notes: dict[str, float]) -> None:
        """Waits for the step's metrics and writes them; every `log_every` steps shows them."""
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        self._watch.logged(step, notes.get("skipped", 0.0))
        self._guard(step, values, notes)
        now = time.perf_counter()
        seconds, self._clock = now - self._clock, now
        flops = train_flops(
            self._program.model, values["tiles"], values["tokens"], values["seen"], self._program.trained
        )
        self._last = {
            "step": step,
            **values,
            "learning_rate": float(self._rate(step - 1)),
            "step_seconds": seconds,
            "tokens_per_second": values["tokens"] / seconds,
            "mfu": flops / seconds / self._peak if self._peak else None,
            **notes,
        }
        if not self._writes:
            return
        self._log.write(self._last)
        self._picture.update()
        if step % self._run.log_every == 0 or step == self._run.steps:
            self._progress.show(self._last)

    def apart(self, step: int, measure: Callable[[Params], float], params: Params) -> float:
        """What `measure` says of a step's parameters; the time that it takes counts for no step."""
        jax.block_until_ready(params)
        started = time.perf_counter()
        with self._watch.interval("validation", step):
            found = measure(params)
        self._clock += time.perf_counter() - started
        return found

    def _guard(self, step: int, values: dict[str, float], notes: dict[str, float]) -> None:
        count = int(values["nonfinite"])
        if count:
            _LOG.warning("step %d: loss %s, gradient norm %s; not applied", step, values["loss"], values["grad_norm"])
        if count > self._run.max_nonfinite:
            raise InputError(
                f"step {step}: the gradient has not been finite for {count} steps in a row; lower the learning rate or "
                "look at the data of these steps, and go on from the last checkpoint"
            )
        self._idle = 0 if values["supervised"] else self._idle + 1
        if self._idle == _MOST_IDLE or self._idle == step == self._run.steps:
            raise InputError(
                f"step {step}: no token has been supervised for {self._idle} steps in a row and "
                f"{notes.get('skipped', 0):.0f} samples could not be loaded (the log says why); look at the data with "
                "launch.check_data"
            )

    def summary(self) -> dict[str, Any]:
        return {"step": self._last["step"], "loss": self._last["loss"]}

    def close(self) -> None:
        if self._writes:
            self._progress.close()
            self._log.close()
            self._picture.draw()
