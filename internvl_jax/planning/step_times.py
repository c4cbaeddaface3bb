"""Step times of the two sides of a decoupled deployment, and of a server that does both, compiled for their chips.

A vision server's chips have the whole tower each and take tiles of their own, so what one chip needs for its tiles is
what all need. A coupled server spreads the tower's weights over all chips and gathers them a layer at a time (rules
`serve_tp`), as it does when it runs. What reads prompts and writes answers is the same program in a coupled server and
in a language server; the latter has no tower in the memory beside it.
"""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from internvl_jax.models import InternVLConfig, Runtime, place, with_quantised
from internvl_jax.planning.chips import Topology
from internvl_jax.planning.engine_trial import EngineTrial, served_weights
from internvl_jax.planning.layouts import Serving, serving_layout
from internvl_jax.planning.trial import OutOfMemoryError, Trial
from internvl_jax.sharding import make_mesh, shard_bytes
from internvl_jax.training import TrainConfig

_PER_CHIP = (1, 2, 4, 8)  # tiles that a chip of a vision server takes at a time
_PER_CHIP_COUPLED = (1, 4)  # and one of a coupled server
_PARTS = 8  # a row's slots and a chunk are compiled whole, and so many times shorter


def vision_times(config: InternVLConfig, where: Topology) -> dict[str, Any]:
    """What a chip of a vision server needs for its tiles.

    Args:
      where: a slice of such chips.
    """
    trial = Trial(Topology(where.name, (1,) * len(where.shape)))
    lies = place(config.text, make_mesh({"data": 1}, where.devices()[:1]), "serve_tp")
    weights = served_weights(config, lies)
    own = {path: leaf for path, leaf in weights.items() if not path.startswith("lm.")}
    engine = EngineTrial(trial, config, lies, Runtime(jnp.dtype(jnp.bfloat16)), weights, {"weights": own})
    try:
        for tiles in _PER_CHIP:
            engine.encode(str(tiles), tiles)
    except OutOfMemoryError:
        pass  # it is noted
    return {"chip": where.name, **_memory(trial), "tower": shard_bytes(own), "encode": _seconds(trial)}


def coupled_times(config: TrainConfig, where: Topology, size: Serving) -> dict[str, Any]:
    """What a coupled server needs for tiles, by how many there are for each of its chips."""
    trial, engine, _ = _server(config, where, size)
    try:
        for tiles in _PER_CHIP_COUPLED:
            engine.encode(str(tiles), tiles * where.chips)
    except OutOfMemoryError:
        pass  # it is noted
    return {"topology": str(where), **_memory(trial), "encode": _seconds(trial)}


def server_times(config: TrainConfig, where: Topology, size: Serving) -> dict[str, Any]:
    """What a server needs for prompts and answers. Its memory is that of one which has the tower too, the bytes of
    which stand beside it.
    """
    trial, engine, axes = _server(config, where, size)
    groups, few, short = where.chips // axes["tensor"], size.slots // _PARTS, size.chunk // _PARTS
    state, fewer = (engine.made(engine.programs.empty, classes=((size.rows, slots),)) for slots in (size.slots, few))
    pool_GPD = engine.pool(-(-size.tiles * size.rows // where.chips) * where.chips)
    try:
        for name, tokens, reach in (("short", short, 0), ("first", size.chunk, 0), ("late", size.chunk, size.slots)):
            index_RP = np.zeros((groups, tokens), np.int32)
            after, logits_RV = engine.chunk(name, state, engine.made(engine.programs.gather, pool_GPD, index_RP), reach)
        engine.begin("begin", after, logits_RV)
        engine.decode("few", fewer, few)
        engine.decode("full", state, size.slots)
    except OutOfMemoryError:
        pass  # it is noted
    tower = {path: leaf for path, leaf in engine.weights.items() if not path.startswith("lm.")}
    seconds = _seconds(trial)
    return {
        "topology": str(where),
        "mesh": ",".join(f"{axis}={count}" for axis, count in axes.items()),
        "groups": groups,
        "rows": size.rows,
        "chunk": size.chunk,
        "slots": size.slots,
        **_memory(trial),
        "tower": shard_bytes(tower),
        "cache": shard_bytes(state.cache),
        "first": {str(short): seconds.get("short"), str(size.chunk): seconds.get("first")},
        "late": seconds.get("late"),
        "begin": seconds.get("begin"),
        "token": {str(few): seconds.get("few"), str(size.slots): seconds.get("full")},
    }


def _server(config: TrainConfig, where: Topology, size: Serving) -> tuple[Trial, EngineTrial, dict[str, int]]:
    """Programs of a server, and its mesh's axes."""
    axes, rules = serving_layout(config, where, size)
    lies = place(config.model.text, make_mesh(axes, where.devices()), rules)
    trial, model = Trial(where), with_quantised(config.model, size.quantise)
    runtime = Runtime(jnp.dtype(jnp.bfloat16), cache=size.cache)
    return trial, EngineTrial(trial, model, lies, runtime, served_weights(model, lies)), axes


def _seconds(trial: Trial) -> dict[str, float | None]:
    return {name: one.get("step_s") for name, one in trial.found.items()}


def _memory(trial: Trial) -> dict[str, Any]:
    """Of the program that needs most."""
    programs = trial.found.values()
    reasons = [one["reason"] for one in programs if "reason" in one]
    totals = [one["bytes_per_device"]["total"] for one in programs if "reason" not in one]
    return {
        "bytes": max(totals, default=None),
        "limit": None if trial.where.chip.hbm == math.inf else trial.where.chip.hbm,
        "reason": reasons[0] if reasons else None,
        "compile_s": round(sum(one.get("compile_s", 0.0) for one in programs), 1),
    }
