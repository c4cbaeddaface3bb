"""One loop for every stage.

1. Config, processor and data are checked before anything is built; the resolved config goes into the workdir.
2. The state is made on its devices: restored from the workdir, or read from `run.init_from`, or random.
3. Every step, in this order: save the state if it is due, take the next batch, dispatch the step, then read the metrics
   of the step before, so that the host works while the devices do. (A saved data position belongs to the saved state
   because no batch is taken between the two.)
"""

import dataclasses
import functools
import logging
import math
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from internvl_jax import sharding
from internvl_jax.data.batch import Batch
from internvl_jax.data.pipeline import Pipeline
from internvl_jax.errors import InputError
from internvl_jax.models import InternVL, Runtime
from internvl_jax.models.flops import PEAK, train_flops
from internvl_jax.sharding import PRESETS, ParamSpec, Rules
from internvl_jax.training import hooks, setup
from internvl_jax.training.checkpoints import Checkpoints, abstract_like
from internvl_jax.training.config import RunConfig, TrainConfig, parse_mesh
from internvl_jax.training.objectives import OBJECTIVES
from internvl_jax.training.optim import assign, optimizer, schedule
from internvl_jax.training.state import TrainState, new_state, state_shardings
from internvl_jax.training.step import make_step

_LOG = logging.getLogger(__name__)

# XLA would gather a weight piece by piece and add up as many partial products in HBM. With rows this long the gather is
# a small part of a product's time (2026-11, libtpu 0.0.42: by the compiler's estimate a step of the 8B takes 1.4 times
# as long with the pieces).
_COMPILER = {"tpu": {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"}}


@dataclasses.dataclass(frozen=True)
class Program:
    """A stage, compiled on demand: what the loop calls, and what tests and benchmarks call without the loop.

    Attributes:
      step: jitted (state, batch) -> (state, metrics); the state is donated.
      abstract: shapes, dtypes and shardings of the state.
      place: a host's numpy batch onto the devices.
      from_params: jitted parameters -> state; they are donated.
      random_params: fresh parameters of the run's seed.
    """

    mesh: Mesh
    graphdef: nnx.GraphDef
    specs: dict[str, ParamSpec]
    abstract: TrainState
    step: Any
    place: Any
    from_params: Any
    random_params: Any


def build(config: TrainConfig, devices: Sequence[jax.Device] | None = None) -> Program:
    """The program of a config on these devices, or on all that there are."""
    run = config.run
    if run.rules not in PRESETS:
        raise InputError(f"run.rules is {run.rules!r}; the presets are {', '.join(PRESETS)}")
    if config.objective not in OBJECTIVES:
        raise InputError(f"objective is {config.objective!r}; the objectives are {', '.join(OBJECTIVES)}")
    mesh, rules = sharding.make_mesh(parse_mesh(run.mesh), devices), PRESETS[run.rules]
    _check_rows(run, mesh, rules)
    make = functools.partial(InternVL, config.model, runtime=Runtime(np.dtype(run.dtype), run.remat))
    graphdef, specs = sharding.abstract(lambda rngs: make(rngs=rngs))
    where = sharding.shardings(specs, mesh, rules)
    assigned = assign(specs, config.optim.groups)
    tx = optimizer(config.optim, run.steps, assigned)

    start = lambda params: new_state(params, tx, assigned)
    shapes = jax.eval_shape(start, {path: jax.ShapeDtypeStruct(s.shape, s.dtype) for path, s in specs.items()})
    places = state_shardings(shapes, specs, where, mesh)
    objective = OBJECTIVES[config.objective](config)
    body = make_step(graphdef, objective, tx, assigned, run.micro_batches, run.seed)

    def step(state, batch):
        with sharding.use(mesh, rules):
            return body(state, batch)

    return Program(
        mesh=mesh,
        graphdef=graphdef,
        specs=specs,
        abstract=abstract_like(shapes, places),
        step=jax.jit(
            step,
            donate_argnums=0,
            out_shardings=(places, NamedSharding(mesh, P())),
            compiler_options=_COMPILER.get(mesh.devices.flat[0].platform),
        ),
        place=functools.partial(_place, sharded=NamedSharding(mesh, rules.spec(("batch",)))),
        from_params=jax.jit(start, donate_argnums=0, out_shardings=places),
        random_params=lambda: sharding.init(lambda rngs: make(rngs=rngs), run.seed, where),
    )


def _check_rows(run: RunConfig, mesh: Mesh, rules: Rules) -> None:
    spread = math.prod(mesh.shape[axis] for axis in rules.batch)
    if run.rows // run.micro_batches % spread:
        raise InputError(
            f"run.rows {run.rows} in {run.micro_batches} micro-batches can't be spread over {spread} devices; "
            "make rows / micro_batches a multiple of that"
        )


def _place(batch: Batch, *, sharded: NamedSharding) -> Batch:
    return jax.tree.map(lambda array: jax.make_array_from_process_local_data(sharded, array), batch)


def train(config: TrainConfig) -> dict[str, Any]:
    """Runs a stage to its last step, resuming from the workdir if it holds a checkpoint.

    Returns:
      a summary: steps, last loss, tokens, seconds, workdir.

    Raises:
      InputError: a config, data or workdir that can't be used; a loss that stays non-finite.
    """
    config, processor = setup.prepare(config)
    program = build(config)
    pipeline = Pipeline(setup.pipeline_config(config), processor)
    workdir = setup.claim_workdir(config, processor)
    with Checkpoints(config.run) as checkpoints:
        return _loop(config, program, pipeline, checkpoints, workdir)


def _loop(
    config: TrainConfig, program: Program, pipeline: Pipeline, checkpoints: Checkpoints, workdir: pathlib.Path
) -> dict[str, Any]:
    run = config.run
    state, position = _initial_state(config, program, checkpoints)
    batches = pipeline.batches(run.rows, host=jax.process_index(), hosts=jax.process_count(), state=position)
    first = saved = int(state.step)
    meter = Meter(config, program.mesh, workdir, first)
    started = time.perf_counter()
    pending = None
    try:
        for step in range(first, run.steps):
            if step > saved and step % run.save_every == 0:
                meter.log(*pending)  # a kill after the save must not lose the metrics of a saved step
                pending = None
                checkpoints.save(step, state, batches.state())
                saved = step
            batch = program.place(next(batches))
            with jax.transfer_guard("disallow"):  # whatever still lies on the host would be copied every step
                state, metrics = program.step(state, batch)
            if pending is not None:
                meter.log(*pending)
            pending = (step + 1, metrics, batches.skipped)
        if pending is not None:
            meter.log(*pending)
        if run.steps > saved:
            checkpoints.save(run.steps, state, batches.state())
            checkpoints.wait()
    finally:
        batches.close()
        meter.close()
    if jax.process_index() == 0:
        hooks.plot_loss(workdir)
    return {**meter.summary(), "seconds": round(time.perf_counter() - started, 1), "workdir": str(workdir)}


def _initial_state(config: TrainConfig, program: Program, checkpoints: Checkpoints) -> tuple[TrainState, Any]:
    if checkpoints.latest is not None:
        return checkpoints.restore(program.abstract)
    given = config.run.init_from
    params = setup.read_initial(config, program.abstract.params) if given else program.random_params()
    return program.from_params(params), None


class Meter:
    """Metrics of every step on the host: rates, utilisation, the guard against a run that no longer learns."""

    def __init__(self, config: TrainConfig, mesh: Mesh, workdir: pathlib.Path, step: int):
        self._config, self._rate = config, schedule(config.optim, config.run.steps)
        self._peak = PEAK.get(mesh.devices.flat[0].device_kind, 0) * mesh.size
        self._writes = jax.process_index() == 0  # one process writes for all
        if self._writes:
            self._log, self._progress = hooks.MetricsLog(workdir, step), hooks.Progress(step, config.run.steps)
        self._clock = time.perf_counter()
        self._last: dict[str, Any] = {"step": step, "loss": None}

    def log(self, step: int, metrics: dict[str, jax.Array], skipped: int) -> None:
        """Waits for the step's metrics and writes them; every `log_every` steps shows them."""
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        self._guard(step, values)
        now = time.perf_counter()
        seconds, self._clock = now - self._clock, now
        context = values["tokens"] / max(1, values["samples"]) / 2
        flops = train_flops(self._config.model, values["tiles"], values["tokens"], context)
        self._last = {
            "step": step,
            **values,
            "learning_rate": float(self._rate(step - 1)),
            "step_seconds": seconds,
            "tokens_per_second": values["tokens"] / seconds,
            "mfu": flops / seconds / self._peak if self._peak else None,
            "skipped": skipped,
        }
        if not self._writes:
            return
        self._log.write(self._last)
        if step % self._config.run.log_every == 0 or step == self._config.run.steps:
            self._progress.show(self._last)

    def _guard(self, step: int, values: dict[str, float]) -> None:
        count = int(values["nonfinite"])
        if count:
            _LOG.warning("step %d: loss %s, gradient norm %s; not applied", step, values["loss"], values["grad_norm"])
        if count > self._config.run.max_nonfinite:
            raise InputError(
                f"step {step}: the gradient has not been finite for {count} steps in a row; lower the learning rate or "
                "look at the data of these steps, and go on from the last checkpoint"
            )

    def summary(self) -> dict[str, Any]:
        return {"step": self._last["step"], "loss": self._last["loss"]}

    def close(self) -> None:
        if self._writes:
            self._progress.close()
            self._log.close()
