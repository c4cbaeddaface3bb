"""The compiled side of a stage: its step, its state's place on the devices, how a state begins."""

import dataclasses
import functools
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from internvl_jax import sharding
from internvl_jax.errors import InputError
from internvl_jax.models import FLASH_PARTS, PARTS, InternVLConfig, LoraConfig, Runtime, plain_path
from internvl_jax.sharding import PRESETS, Params, ParamSpec, RowShare, Rules
from internvl_jax.training.config import OptimConfig, RunConfig
from internvl_jax.training.run import compiler
from internvl_jax.training.run.adapting import check_thawed, frozen_base, plain_params, saved_paths, state_dtype
from internvl_jax.training.run.checkpoints import abstract_like
from internvl_jax.training.run.optim import assign, check_idle, optimizer
from internvl_jax.training.run.state import TrainState, new_state, state_shardings
from internvl_jax.training.run.step import Metrics, attention_metrics, make_step
from internvl_jax.training.stages.terms import Objective
from internvl_jax.validation import nearest


@dataclasses.dataclass(frozen=True)
class Program:
    """A stage, compiled on demand: what the loop calls, and what tests and benchmarks call without the loop.

    Attributes:
      mesh, rules: where it runs.
      model: the model's config.
      objective: what it optimises.
      graphdef, specs: the model's structure and parameters.
      reference_graphdef, abstract_reference: the structure of the frozen reference, and the shapes, dtypes and
        shardings of its parameters.
      abstract: the shapes, dtypes and shardings of the state.
      saved: the paths of the parameters that checkpoints hold.
      trained: those of `specs` that are trained.
      step: jitted (state, batch, reference=None) -> (state, metrics); the state is donated.
      share: which rows of a batch this process loads.
      place: puts them, a numpy batch, onto the devices; gives the whole batch.
      from_params: jitted parameters -> state; the parameters are donated.
      random_params: makes fresh parameters from the run's seed; given paths, those alone.
      jit: `jax.jit` of another program beside the step, with the compiler's options for it.
    """

    mesh: Mesh
    rules: Rules
    model: InternVLConfig
    objective: Objective
    graphdef: nnx.GraphDef
    specs: dict[str, ParamSpec]
    reference_graphdef: nnx.GraphDef
    abstract_reference: Params
    abstract: TrainState
    saved: frozenset[str]
    trained: dict[str, ParamSpec]
    step: Any
    share: RowShare
    place: Any
    from_params: Any
    random_params: Any
    jit: Any

    @property
    def own_reference(self) -> Params:
        """What of a reference is not in the state, where that holds it as the frozen base beside which adapters are
        trained: the parameters that are trained whole. All of it without adapters.
        """
        lora = self.model.lora
        return {path: leaf for path, leaf in self.abstract_reference.items() if lora is None or path in lora.whole}

    def reference_of(self, params: Params, reference: Params) -> Params:
        """All parameters of the frozen reference, the very arrays.

        Args:
          params: those of a state, whose frozen base is the reference's where there is one.
          reference: what the reference has besides, or all of it.
        """
        return _whole_reference(params, reference, self.model.lora)


def make_program(
    model: InternVLConfig,
    optim: OptimConfig,
    run: RunConfig,
    objective: Objective,
    name: str,
    devices: Sequence[jax.Device] | None = None,
) -> Program:
    """The program of an objective of this name on these devices, or on all that there are.

    Raises:
      InputError: a mesh, preset, remat or group of parameters that can't be; rows that can't be spread.
    """
    if run.rules not in PRESETS:
        hint = nearest(run.rules, PRESETS)
        raise InputError(f"run.rules is {run.rules!r}{hint}; the presets are {', '.join(PRESETS)}")
    mesh, rules = sharding.make_mesh(sharding.parse_mesh(run.mesh), devices), PRESETS[run.rules]
    _check_rows(run, mesh, rules)
    share = sharding.row_share(mesh, rules, jax.process_index())
    runtime = Runtime(
        np.dtype(run.dtype), run.remat, run.offload, run.tile_groups, skip_blocks=run.skip_blocks, products=run.products
    )
    make = lambda rngs: PARTS["all"](model, rngs, runtime)
    graphdef, specs = sharding.structure(PARTS["all"], model, runtime)
    # References see every tile at full resolution: the parts of a Flash model are not even loaded.
    reference_graphdef, _ = sharding.structure(PARTS["all"], dataclasses.replace(model, flash=None, lora=None), runtime)
    where, lora = sharding.shardings(specs, mesh, rules), model.lora
    assigned = assign(specs, optim.groups)
    check_thawed(assigned, lora, objective.idle)
    assigned = frozen_base(assigned, lora)
    dtypes = {path: state_dtype(path, spec, lora, runtime.dtype, in_products(path)) for path, spec in specs.items()}
    check_idle(assigned, objective.idle, name)
    tx = optimizer(optim, run.steps, assigned)

    start = lambda params: new_state(params, tx, assigned, objective.start())
    shapes = jax.eval_shape(start, {path: jax.ShapeDtypeStruct(s.shape, dtypes[path]) for path, s in specs.items()})
    places = state_shardings(shapes, specs, where, mesh)

    def random_params(paths: Iterable[str] = where) -> Params:
        fresh = sharding.init(make, run.seed, {path: where[path] for path in paths})
        return {path: value.astype(dtypes[path]) for path, value in fresh.items()}

    def refer(params: Params, reference: Params) -> nnx.Module:
        return sharding.bind(reference_graphdef, _whole_reference(params, reference, lora))

    attended = functools.partial(attention_metrics, config=model.text, skips=run.skip_blocks)
    body = make_step(graphdef, objective, tx, assigned, run.micro_batches, run.seed, refer, attended)

    def step(state: TrainState, batch: Any, reference: Params | None = None) -> tuple[TrainState, Metrics]:
        with sharding.use(mesh, rules):
            return body(state, batch, reference)

    jit = functools.partial(compiler.jit, mesh=mesh, experts=model.text.moe is not None)
    return Program(
        mesh=mesh,
        rules=rules,
        model=model,
        objective=objective,
        graphdef=graphdef,
        specs=specs,
        reference_graphdef=reference_graphdef,
        abstract_reference=_reference(specs, where, runtime.dtype),
        abstract=abstract_like(shapes, places),
        saved=saved_paths(specs, lora),
        trained={path: specs[path] for path, group in assigned.items() if not group.frozen},
        step=jit(step, donate_argnums=0, out_shardings=(places, NamedSharding(mesh, P()))),
        share=share,
        place=functools.partial(share.place, mesh=mesh, rules=rules),
        from_params=jit(start, donate_argnums=0, out_shardings=places),
        random_params=random_params,
        jit=jit,
    )


def in_products(path: str) -> bool:
    """Whether a parameter meets activations in a product of the run's dtype; a router's stay exact."""
    return path.endswith((".weight", ".weight.base", ".weight.a", ".weight.b")) and ".router." not in path


def _reference(specs: dict[str, ParamSpec], where: dict[str, NamedSharding], dtype: np.dtype) -> Params:
    """The parameters of a frozen reference: never updated, so its weights have the dtype of the products."""
    return {
        plain: jax.ShapeDtypeStruct(spec.shape, dtype if in_products(path) else spec.dtype, sharding=where[path])
        for path, spec in specs.items()
        if (plain := plain_path(path)) is not None and not re.search(FLASH_PARTS, path)
    }


def _whole_reference(params: Params, reference: Params, lora: LoraConfig | None) -> Params:
    base = plain_params(params, lora)
    return {path: value for path, value in base.items() if not re.search(FLASH_PARTS, path)} | reference


def _check_rows(run: RunConfig, mesh: Mesh, rules: Rules) -> None:
    spread = math.prod(mesh.shape[axis] for axis in rules.batch)
    if run.rows // run.micro_batches % spread:
        raise InputError(
            f"run.rows {run.rows} in {run.micro_batches} micro-batches can't be spread over {spread} devices; "
            "make rows / micro_batches a multiple of that"
        )
