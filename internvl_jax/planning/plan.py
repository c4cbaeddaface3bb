"""What a config needs on a slice that is not there: does it fit, where does the memory go, how long may a step take."""

import copy
import dataclasses
import math
from typing import Any

from internvl_jax.errors import InputError
from internvl_jax.models import place
from internvl_jax.planning.assumed import DEFAULT, NOT_MODELLED, Assumed
from internvl_jax.planning.chips import Topology
from internvl_jax.planning.engine_trial import rollout, serving
from internvl_jax.planning.estimate import STREAM
from internvl_jax.planning.layouts import Serving, candidates, offloaded, serving_layout, training_layouts
from internvl_jax.planning.lowering import model_flops, training
from internvl_jax.planning.search import search
from internvl_jax.planning.trial import OutOfMemoryError, Trial
from internvl_jax.sharding import make_mesh, parse_mesh
from internvl_jax.training import GspoConfig, TrainConfig

_LAYOUT = ("remat", "offload", "tile_groups", "rows", "micro_batches")
TASKS = ("train", "prefill", "decode", "serve", "rollout")


def plan(
    config: TrainConfig, task: str, topology: str, size: Serving, auto: bool, assumed: Assumed = DEFAULT
) -> dict[str, Any]:
    """The plan of a task on one slice, or on the smallest that it fits.

    Args:
      config: the config of a run; its mesh, rules, remat, offload and micro-batches are used as they are unless
        `auto`.
      task: 'train' (a step), 'prefill', 'decode', 'serve' (all programs of a server) or 'rollout' (all that a rollout
        batch of GSPO needs).
      topology: a slice, like 'v5p:4x4x4', or a chip, like 'v5p', for the smallest of its slices that holds the task.
      size: what a server holds; training and rollouts don't look at it.
      auto: choose mesh, rules, remat, offload and micro-batches for the slice.
      assumed: what times and operations take for granted.

    Raises:
      InputError: no such topology, a layout that the model's sizes forbid, or a rollout of a config without.
    """
    if task == "rollout" and not isinstance(config.stage, GspoConfig):
        raise InputError(f"objective {config.objective!r} has no rollouts; give --config=gspo:SIZE")
    if ":" in topology:
        where = Topology.parse(topology)
        found = _best(config, task, where, size, auto, assumed)
        smaller = candidates(config, task, size, where.name) if where.chip.slices else iter(())
        return {**found, "smallest_slice": next(map(str, smaller), None), "smallest_slice_is": "by arithmetic"}
    tried: list[str] = []
    for where in candidates(config, task, size, topology):
        found = _best(config, task, where, size, auto, assumed)
        if found["fits"]:
            return {**found, "smallest_slice": str(where), "smallest_slice_is": "compiled", "too_small": tried}
        tried.append(str(where))
    raise InputError(f"{task} of this model fits no listed slice of {topology}; tried {', '.join(tried) or 'none'}")


def _best(
    config: TrainConfig, task: str, where: Topology, size: Serving, auto: bool, assumed: Assumed
) -> dict[str, Any]:
    """The plan with the first layout that fits."""
    config = copy.deepcopy(config)

    def compiled(layout: dict[str, Any]) -> dict[str, Any]:
        run = dataclasses.replace(config.run, **layout)
        return _plan(dataclasses.replace(config, run=run), task, where, size, auto, assumed)

    if not auto or task not in ("train", "rollout"):
        return compiled({})
    if task == "rollout":  # what a step recomputes is nothing to rollouts
        return compiled(training_layouts(config, where)[0])
    return search(config, where, compiled)


def _plan(
    config: TrainConfig, task: str, where: Topology, size: Serving, auto: bool, assumed: Assumed
) -> dict[str, Any]:
    run, trial = config.run, Trial(where, assumed)
    layout: dict[str, Any] = {"mesh": run.mesh, "rules": run.rules}
    try:
        if task == "train":
            layout |= {name: getattr(run, name) for name in _LAYOUT}
            trial.run(task, training(config, where.devices(), assumed))
        elif isinstance(config.stage, GspoConfig) and task == "rollout":
            rollout(trial, config, config.stage)
        else:
            axes, rules = serving_layout(config, where, size) if auto else (parse_mesh(run.mesh), run.rules)
            layout = {"mesh": ",".join(f"{axis}={n}" for axis, n in axes.items()), "rules": rules}
            layout |= dataclasses.asdict(size)
            mesh = make_mesh(axes, where.devices())
            serving(trial, config.model, place(config.model.text, mesh, rules), task, size)
    except OutOfMemoryError:
        pass  # it is noted
    head = {
        "task": task,
        "topology": str(where),
        "chips": where.chips,
        "layout": layout,
        "compiled_for": "tpu" if where.chip.platform == "tpu" else "cpu",
    }
    if where.chip.platform == "tpu":
        head["assumed"] = {"kernel_rate": assumed.kernel, "memory_rate": STREAM, "latency_s": assumed.latency}
        head["not_modelled"] = list(NOT_MODELLED)
    if task == "train":
        head["lengths"] = assumed.describe(config.data.token_budget)
        if run.offload != "none":
            head["host"] = _host(config, where)
    if list(trial.found) == [task]:
        found = trial.found[task]
        if task == "train" and assumed.median and found.get("mfu"):  # what rows of the same length come to otherwise
            found["mfu_of_one_sample_a_row"] = (
                found["mfu"] * model_flops(config, DEFAULT) / model_flops(config, assumed)
            )
        return {**head, **found}
    return {**head, **trial.notes, **_together(trial)}


def _host(config: TrainConfig, where: Topology) -> dict[str, float]:
    """What a chip keeps in its host's memory, and how long a step's way there and back takes, which is taken to be
    hidden: by arithmetic.
    """
    run = config.run
    size = offloaded(config, run.offload, run.rows / run.micro_batches / where.chips, beside=run.remat)
    seconds = 2 * size * run.micro_batches / where.chip.host_bandwidth if where.chip.host_bandwidth else 0.0
    return {"bytes": round(size), "limit": where.chip.host_memory, "both_ways_s": seconds}


def _together(trial: Trial) -> dict[str, Any]:
    """What several programs need that take turns."""
    programs, hbm = trial.found, trial.where.chip.hbm
    reasons = [f"{name}: {one.get('reason', 'out of memory')}" for name, one in programs.items() if not one["fits"]]
    if "by_arithmetic" in trial.notes and trial.notes["by_arithmetic"]["total"] > hbm:
        reasons.append("by arithmetic: out of memory, a run would not begin")
    kinds = [one["bytes_per_device"] for one in programs.values()]
    return {
        "fits": not reasons,
        **({"reason": "; ".join(reasons)} if reasons else {}),
        "bytes_per_device": max(kinds, key=lambda each: each.get("total", math.inf)),
        "replicated": sorted({one for each in programs.values() for one in each["replicated"]}),
        "programs": programs,
    }
