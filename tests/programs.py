"""Programs that the tests of a process share.

Tracing and compiling the same few toy programs is most of what the suite does. Here whatever compiles is made once for
all runs that differ in nothing that its programs depend on; nothing of it remembers a run.
"""

import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from internvl_jax.inference import Ladders, save_model
from internvl_jax.inference.engine import sampler as sampler_module
from internvl_jax.inference.engine.paged_runner import PagedRunner
from internvl_jax.inference.engine.programs import Programs
from internvl_jax.inference.engine.runner import Runner
from internvl_jax.inference.engine.sampler import Sampler
from internvl_jax.making import responses
from internvl_jax.models import PARTS, InternVLConfig, Runtime
from internvl_jax.sharding import make_mesh, parse_mesh
from internvl_jax.sharding.flat import Params, init
from internvl_jax.sharding.rules import context
from internvl_jax.training import TrainConfig
from internvl_jax.training.run import compiler, hooks, loop, score, setup
from internvl_jax.training.run.hooks import plot_health
from internvl_jax.training.run.program import Program
from internvl_jax.training.stages import preference_rows
from internvl_jax.training.stages.gspo import partial_rollouts, rollouts, sampling_weights

# Fields that no program depends on: where things lie, what is saved, what becomes of responses on the host. All fields
# that batches get their shapes from count, so that a shared step still compiles once.
_FREE = {
    "run": {
        "workdir",
        "init_from",
        "validate_every",
        "save_every",
        "keep_last",
        "keep_every",
        "log_every",
        "max_nonfinite",
        "mesh",
    },
    "data": {"meta", "validation_meta", "tokenizer", "max_skipped"},
    "stage": {
        "reference",
        "cache_dir",
        "reward",
        "zero_variance",
        "max_resamples",
        "mask_overlong",
        "accuracies",
        "ahead",
        "staleness",
    },
}
_PROGRAMS: dict[str, Program] = {}
_RANDOM: dict[tuple[InternVLConfig, int], dict[str, np.ndarray]] = {}
_SCORERS: dict[tuple, tuple] = {}
_ENGINES: dict[tuple, Programs] = {}


def build(
    config: TrainConfig, devices: Sequence[jax.Device] | None = None, guarded: bool = False, many_steps: bool = False
) -> Program:
    """As `internvl_jax.training.build`; a program that was built before is given again.

    The loop calls its step under a transfer guard, for which JAX compiles it apart: a step that is called either way
    (`guarded`) would not look as if it had compiled once. A step that is called more than a hundred times is compiled
    with more effort (`many_steps`): 5.2 s instead of 1.5, and then 0.03 s a step instead of 0.12.
    """
    mesh = make_mesh(parse_mesh(config.run.mesh), devices).shape  # however it was written
    parts = [config.model, config.objective, config.optim, mesh, devices, guarded, many_steps]
    for name, free in _FREE.items():
        section = getattr(config, name)
        values = {} if section is None else vars(section)
        parts.append({field: value for field, value in values.items() if field not in free})
    key = repr(parts)
    if key not in _PROGRAMS:
        with pytest.MonkeyPatch.context() as patch:
            if many_steps:
                patch.setattr(compiler, "options", lambda *_: {"xla_backend_optimization_level": 1})
            built = setup.build(config, devices)
        fresh = functools.partial(_random_params, built, (built.model, config.run.seed))
        _PROGRAMS[key] = dataclasses.replace(built, random_params=fresh)
    return _PROGRAMS[key]


def _random_params(built: Program, key: tuple[InternVLConfig, int], paths: Sequence[str] | None = None) -> Params:
    """What `built.random_params` gives, made by one program for all meshes: values depend on model and seed alone
    (`tests/sharding/state_test.py`).
    """
    if key not in _RANDOM:
        make = lambda rngs: PARTS["all"](built.model, rngs, Runtime())
        _RANDOM[key] = jax.device_get(init(make, key[1]))
    leaves = {path: built.abstract.params[path] for path in paths or built.abstract.params}
    # A copy each time: a step may take over the memory of its parameters.
    return {path: jax.device_put(_RANDOM[key][path].astype(leaf.dtype), leaf.sharding) for path, leaf in leaves.items()}


def save_start(config: TrainConfig, directory: pathlib.Path, **others: Any) -> None:
    """Writes a model to start from, with the random weights that a run of the config would begin with; `others` fill
    parameters with one value, dots of their paths written as double underscores.
    """
    config, processor = setup.prepare(config)
    program = build(config, jax.devices()[:1])
    params = program.random_params()
    for name, value in others.items():
        path = name.replace("__", ".")
        params[path] = jnp.full_like(params[path], value)
    save_model(directory, params, config.model, processor)


def _make_scorer(built: Program, graphdef, micro_batches: int, logprob_chunk: int):
    key = id(built), graphdef is built.graphdef, micro_batches, logprob_chunk
    if key not in _SCORERS:  # the program is kept too, so that no other one gets its id
        _SCORERS[key] = score.make_scorer(built, graphdef, micro_batches, logprob_chunk), built
    return _SCORERS[key][0]


def _shared_by_engines(kind: type[Programs]) -> Callable[..., Programs]:
    """Makes an engine's programs, or gives those of an earlier engine of the same structure on the same mesh."""

    def make(config, graphdef, decode_graphdef, *others):
        place = context()
        mesh, rules = place if place else (None, None)
        key = kind, config, graphdef, decode_graphdef, graphdef is decode_graphdef, mesh, repr(rules), *map(str, others)
        if key not in _ENGINES:
            _ENGINES[key] = kind(config, graphdef, decode_graphdef, *others)
        return _ENGINES[key]

    return make


def forget() -> None:
    """Lets go of all programs; what is asked for next is made anew."""
    _PROGRAMS.clear()
    _SCORERS.clear()
    _ENGINES.clear()


@contextlib.contextmanager
def shared() -> Iterator[None]:
    """Inside, training and the making of pairs take their programs from here, and a picture of the same metrics is
    drawn once: it takes up to two seconds.
    """
    drawn = set()

    def draw(workdir: pathlib.Path, columns: Sequence[str]) -> None:
        if columns not in drawn:
            drawn.add(columns)
            plot_health(workdir, columns)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hooks, "plot_health", draw)
        patch.setattr(loop, "build", functools.partial(build, guarded=True))
        sampler = functools.cache(Sampler)  # holds no parameters
        for module in (partial_rollouts, responses):
            patch.setattr(module, "Sampler", sampler)
        # Every number of rows that a rollout shrinks to is a program.
        few_rows = lambda: Ladders(rows=(1, 8, 64, 256))
        for module in (sampling_weights, responses):
            patch.setattr(module, "Ladders", few_rows)
        patch.setattr(sampler_module, "Programs", _shared_by_engines(Programs))
        for runner in (Runner, PagedRunner):
            patch.setattr(runner, "kind", staticmethod(_shared_by_engines(runner.kind)))
        for module in (rollouts, preference_rows):
            patch.setattr(module, "make_scorer", _make_scorer)
        yield
