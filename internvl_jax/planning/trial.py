"""Compiling programs for a slice, and reading what each of them needs."""

import math
import re
import time
from typing import Any

import jax
import numpy as np

from internvl_jax.planning.assumed import DEFAULT, Assumed
from internvl_jax.planning.chips import Topology
from internvl_jax.planning.estimate import estimate
from internvl_jax.planning.hlo import HloProgram, num_bytes
from internvl_jax.planning.lowering import Lowered
from internvl_jax.sharding import shard_bytes

# Parameters, moments and caches from this size on must not lie whole on devices that could share them.
LARGE = 4 << 20
_ELSEWHERE = "compiled for as many CPU devices: memory is that program's, attention has no fused kernel; time unknown"
_ROOFLINE = "roofline from compiler cycles, assumed kernel rate, bytes sent and assumed latency; nothing was run"


class OutOfMemoryError(Exception):
    """The compiler found no room for a program on a device."""


class Trial:
    """Programs compiled for a slice, one after the other.

    Attributes:
      where: the slice.
      assumed: what estimates take for granted.
      found: what each of them needs, by its name.
      notes: what else there is to say.
    """

    def __init__(self, where: Topology, assumed: Assumed = DEFAULT):
        self.where, self.assumed = where, assumed
        self.found: dict[str, dict[str, Any]] = {}
        self.notes: dict[str, Any] = {}

    def run(self, name: str, lowered: Lowered) -> Any:
        """Compiles a program and notes what it needs; returns its results as structs that lie where it puts them.

        Raises:
          OutOfMemoryError: see there; it is noted.
        """
        head: dict[str, Any] = {
            "bytes_per_device": {kind: shard_bytes(tree) for kind, tree in lowered.there.items()},
            "replicated": replicated(lowered),
        }
        started = time.perf_counter()
        try:
            compiled = lowered.lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            reason = re.search(r"Ran out of memory[^\n]{0,300}", str(error))
            if (used := _used(str(error))) is not None:
                head["bytes_per_device"]["total"] = used
            self.found[name] = {**head, "fits": False, "reason": reason.group(0) if reason else "out of memory"}
            raise OutOfMemoryError from error
        seconds = round(time.perf_counter() - started, 1)
        self.found[name] = {**head, **_read(lowered, compiled, self.where, self.assumed), "compile_s": seconds}
        return _results(lowered.lowered, compiled)


def _used(message: str) -> float | None:
    """Bytes that the compiler wanted, as it says where there is no room: 'Used 36.25G of 31.25G hbm'."""
    found = re.search(r"Used ([\d.]+)([KMGT]) of ", message)
    return float(found.group(1)) * 1024 ** ("KMGT".index(found.group(2)) + 1) if found else None


def results(lowered: Any) -> Any:
    """What a program returns, as structs that lie where it puts them; nothing else is asked of it."""
    return _results(lowered, lowered.compile())


def _results(lowered: Any, compiled: jax.stages.Compiled) -> Any:
    struct = lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)
    return jax.tree.map(struct, lowered.out_info, compiled.output_shardings)


def _read(lowered: Lowered, compiled: jax.stages.Compiled, where: Topology, assumed: Assumed) -> dict[str, Any]:
    """What the compiled program says."""
    memory, chip = compiled.memory_analysis(), where.chip
    kinds: dict[str, float] = {kind: shard_bytes(tree) for kind, tree in lowered.there.items()}
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
    flops = lowered.flops / where.chips
    program = HloProgram(compiled.as_text())
    out = {
        "fits": total <= chip.hbm,
        "bytes_per_device": kinds,
        "largest_arrays": largest(program),
        "model_flops_per_device": flops,
    }
    if chip.platform != "tpu":
        bound = flops / chip.peak if chip.peak else None
        return {**out, "step_s": None, "step_s_at_peak": bound, "mfu": None, "estimate": _ELSEWHERE}
    found = estimate(program, chip, where.chips, assumed)
    read = program.read_bytes() / chip.hbm_bandwidth
    step = max(found.seconds, read)
    return {
        **out,
        "executed_flops_per_device": found.flops,
        "collective_bytes_per_device": {kind: round(sent) for kind, sent in found.sent.items()},
        "transfers": round(found.transfers),
        "compiled_s": found.compiled_s,
        "compiled_s_in_cycles": found.cycles_s,
        "kernels_s": found.kernels_s,
        "transfers_s": found.transfers_s,
        "read_s": read,
        "step_s": step,
        "mfu": flops / step / chip.peak,
        "mfu_in_cycles": flops / (step - found.compiled_s + found.cycles_s) / chip.peak,
        "estimate": _ROOFLINE,
    }


def replicated(lowered: Lowered) -> list[str]:
    """Large parameters, moments and caches that are on more devices than there are data-parallel groups."""
    found = []
    for kind in ("parameters", "optimizer", "weights", "features", "cache"):
        for path, leaf in jax.tree_util.tree_leaves_with_path(lowered.there.get(kind)):
            part = math.prod(leaf.sharding.shard_shape(leaf.shape))
            copies = part * lowered.mesh.size / math.prod(leaf.shape)
            if part * np.dtype(leaf.dtype).itemsize >= LARGE and copies > leaf.sharding.mesh.shape["data"]:
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
