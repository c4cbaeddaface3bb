"""What a config needs on a slice that is not there: does it fit, where does the memory go, how long may a step take."""

import copy
import dataclasses
import math
import re
import time
from typing import Any

import jax
import numpy as np

from internvl_jax.errors import InputError
from internvl_jax.models import token_flops, train_flops
from internvl_jax.planning.chips import Topology
from internvl_jax.planning.estimate import estimate
from internvl_jax.planning.hlo import HloProgram, num_bytes
from internvl_jax.planning.layouts import candidates, serving_layout, training_layouts
from internvl_jax.planning.lowering import Lowered, Serving, serving, training
from internvl_jax.sharding import parse_mesh, shard_bytes
from internvl_jax.training import TrainConfig

# Parameters and moments from this size on must not lie whole on devices that could share them.
LARGE = 4 << 20


def plan(config: TrainConfig, task: str, topology: str, size: Serving, auto: bool) -> dict[str, Any]:
    """The plan of one program on one slice, or on the smallest that it fits.

    Args:
      config: the config of a run; its mesh, rules, remat and micro-batches are used as they are unless `auto`.
      task: 'train', 'prefill' or 'decode'.
      topology: a slice, like 'v5p:4x4x4', or a chip, like 'v5p', for the smallest of its slices that holds the program.
      size: what a server holds; training doesn't look at it.
      auto: choose mesh, rules, remat and micro-batches for the slice.

    Raises:
      InputError: no such topology, or a layout that the model's sizes forbid.
    """
    if ":" in topology:
        where = Topology.parse(topology)
        found = _best(config, task, where, size, auto)
        smaller = candidates(config, task, size, where.name) if where.chip.slices else iter(())
        return {**found, "smallest_slice": next(map(str, smaller), None), "smallest_slice_is": "by arithmetic"}
    tried: list[str] = []
    for where in candidates(config, task, size, topology):
        found = _best(config, task, where, size, auto)
        if found["fits"]:
            return {**found, "smallest_slice": str(where), "smallest_slice_is": "compiled", "too_small": tried}
        tried.append(str(where))
    raise InputError(f"{task} of this model fits no listed slice of {topology}; tried {', '.join(tried) or 'none'}")


def _best(config: TrainConfig, task: str, where: Topology, size: Serving, auto: bool) -> dict[str, Any]:
    """The plan with the first layout that fits."""
    config = copy.deepcopy(config)
    if task != "train" or not auto:
        return _plan(config, task, where, size, auto)
    for layout in training_layouts(config, where):
        run = dataclasses.replace(config.run, **layout)
        found = _plan(dataclasses.replace(config, run=run), task, where, size, auto)
        if found["fits"]:
            break
    return found


def _plan(config: TrainConfig, task: str, where: Topology, size: Serving, auto: bool) -> dict[str, Any]:
    run = config.run
    if task == "train":
        axes, rules = parse_mesh(run.mesh), run.rules
        layout = {"mesh": run.mesh, "rules": rules, "remat": run.remat, "rows": run.rows}
        layout["micro_batches"] = run.micro_batches
        lower = lambda: training(config, where.devices())
    else:
        axes, rules = serving_layout(config, where, size) if auto else (parse_mesh(run.mesh), run.rules)
        layout = {"mesh": ",".join(f"{axis}={n}" for axis, n in axes.items()), "rules": rules}
        layout |= dataclasses.asdict(size)
        lower = lambda: serving(config.model, task, size, axes, rules, where.devices())
    started = time.perf_counter()
    lowered = lower()
    head = {
        "task": task,
        "topology": str(where),
        "chips": where.chips,
        "layout": layout,
        "compiled_for": "tpu" if where.chip.platform == "tpu" else "cpu",
        "bytes_per_device": {kind: shard_bytes(tree) for kind, tree in lowered.arguments.items()},
        "replicated": replicated(lowered),
    }
    try:
        compiled = lowered.lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        reason = re.search(r"Ran out of memory[^\n]{0,300}", str(error))
        return {**head, "fits": False, "reason": reason.group(0) if reason else "out of memory"}
    return {**head, **_read(config, task, where, size, lowered, compiled, time.perf_counter() - started)}


def _read(
    config: TrainConfig,
    task: str,
    where: Topology,
    size: Serving,
    lowered: Lowered,
    compiled: jax.stages.Compiled,
    seconds: float,
) -> dict[str, Any]:
    """What the compiled program says."""
    memory, chip = compiled.memory_analysis(), where.chip
    kinds: dict[str, float] = {kind: shard_bytes(tree) for kind, tree in lowered.arguments.items()}
    # What a program doesn't read (decoding, the vision tower) is not among its arguments, but in the memory it is.
    beside = max(0, sum(kinds.values()) - memory.argument_size_in_bytes)
    # The peak by libtpu takes in arguments, results and what is alive between them; libtpu itself compares it with the
    # memory that there is. (Its temp_size adds up buffers that are never alive together.) The peak by XLA on CPU leaves
    # temporaries out.
    total = memory.peak_memory_in_bytes + beside
    if chip.platform != "tpu":
        total = memory.argument_size_in_bytes + memory.temp_size_in_bytes + beside
        total += memory.output_size_in_bytes - memory.alias_size_in_bytes
    limit = None if chip.hbm == math.inf else chip.hbm
    kinds |= {"activations": total - sum(kinds.values()), "total": total, "limit": limit}
    flops = model_flops(config, task, size) / where.chips
    program = HloProgram(compiled.as_text())
    out = {
        "fits": total <= chip.hbm,
        "bytes_per_device": kinds,
        "largest_arrays": largest(program),
        "model_flops_per_device": flops,
        "compile_s": round(seconds, 1),
    }
    if chip.platform != "tpu":
        bound = flops / chip.peak if chip.peak else None
        return {**out, "step_s": None, "step_s_at_peak": bound, "mfu": None, "estimate": _ELSEWHERE}
    found = estimate(program, chip, where.chips)
    # Everything given is read at least once.
    read = memory.argument_size_in_bytes / chip.hbm_bandwidth
    step = max(found.seconds, read)
    return {
        **out,
        "executed_flops_per_device": found.flops,
        "collective_bytes_per_device": {kind: round(sent) for kind, sent in found.sent.items()},
        "compiled_s": found.compiled_s,
        "compiled_s_in_cycles": found.cycles_s,
        "kernels_s": found.kernels_s,
        "transfers_s": found.transfers_s,
        "read_s": read,
        "step_s": step,
        "mfu": flops / step / chip.peak,
        "mfu_in_cycles": flops / (step - found.compiled_s + found.cycles_s) / chip.peak,
        "estimate": "roofline from compiler cycles, assumed kernel rate and bytes sent; nothing was run",
    }


_ELSEWHERE = "compiled for as many CPU devices: memory is that program's, attention has no fused kernel; time unknown"


def model_flops(config: TrainConfig, task: str, size: Serving) -> float:
    """How many operations the model itself needs, on all devices together; a row is taken as one sample."""
    model = config.model
    if task == "train":
        rows, data = config.run.rows, config.data
        return train_flops(model, rows * data.tile_budget, rows * data.token_budget, data.token_budget / 2)
    if task == "prefill":
        return size.rows * size.prompt * token_flops(model, size.prompt / 2)
    return size.rows * token_flops(model, size.slots)


def replicated(lowered: Lowered) -> list[str]:
    """Large parameters, moments and caches that are on more devices than there are data-parallel groups."""
    found = []
    for kind in ("parameters", "optimizer", "cache"):
        for path, leaf in jax.tree_util.tree_leaves_with_path(lowered.arguments.get(kind)):
            part = math.prod(leaf.sharding.shard_shape(leaf.shape))
            copies = part * lowered.mesh.size / math.prod(leaf.shape)
            if part * np.dtype(leaf.dtype).itemsize >= LARGE and copies > lowered.mesh.shape["data"]:
                found.append(f"{kind}{jax.tree_util.keystr(path)}: {copies:.0f} copies of {leaf.shape}")
    return found


def largest(program: HloProgram, count: int = 3) -> dict[str, int]:
    """Shapes of the largest arrays that the program makes, with their bytes: where an accident would show."""
    shapes = {
        part
        for body, _ in program.bodies(trips=lambda *_: 1)  # on CPU, loops of grouped products have no known length
        for one in body
        if one.opcode not in ("parameter", "get-tuple-element", "tuple", "while", "bitcast")
        for part in re.findall(r"\w+\[[\d,]*\]", one.shape)
    }
    return {shape: num_bytes(shape) for shape in sorted(shapes, key=num_bytes, reverse=True)[:count]}
