"""The policy as it is sampled from: where its weights lie then, in which dtype, and whether the answers fit beside what
training keeps.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from internvl_jax.errors import InputError
from internvl_jax.inference import GroupMemory, GroupSize, Ladders, group_memory, memory_limit
from internvl_jax.models import place
from internvl_jax.sharding import AXES, Params, Placement, placed, places, serving_axes, shard_bytes, spread
from internvl_jax.training.run.program import Program, in_products
from internvl_jax.training.stages.gspo.settings import GspoConfig

# Prompts wait for the rows of those before them, so that few rows stand idle: so many times what is sampled at a time.
# (Not all of a rollout batch: a prompt that waits has its tiles in the memory of the host.)
_AHEAD = 4


@dataclasses.dataclass(frozen=True)
class SamplingMemory:
    """Bytes on a device while answers are sampled.

    Attributes:
      state: what training keeps: parameters, moments, the frozen reference.
      weights: of the policy as it is sampled from; 0 where these are training's own.
      cache: keys and values, see `group_memory`.
    """

    state: int
    weights: int
    cache: GroupMemory

    @property
    def total(self) -> int:
        return self.state + self.weights + self.cache.total


def sampling_ladders(settings: GspoConfig) -> Ladders:
    """The sizes that programs of a run's sampler are compiled for."""
    rows = tuple(sorted({*Ladders().rows, settings.sample_prompts}))
    return dataclasses.replace(Ladders(), rows=rows, slots=(settings.max_new_tokens,))


def prompts_ahead(settings: GspoConfig) -> int:
    """How many prompts the sampler is given in a call, at most, beside those that are answered `ahead`."""
    return min(settings.prompts, _AHEAD * settings.sample_prompts)


def group_size(settings: GspoConfig) -> GroupSize:
    """What is sampled at a time, at its largest."""
    return GroupSize(settings.sample_prompts, settings.group, settings.max_prompt_tokens, settings.max_new_tokens)


def sampling_place(program: Program) -> Placement | None:
    """Where responses are sampled: weights lie whole but for what devices of a row share, so that a token moves
    activations and not weights. The devices are those of training, in the same order; None: there is one.
    """
    text, devices = program.model.text, program.mesh.devices.reshape(-1)
    if len(devices) == 1:
        return None
    axes = serving_axes(len(devices), text.kv_heads, None if text.moe is None else text.moe.experts)
    shape = [axes.get(axis, 1) for axis in AXES]
    return place(text, Mesh(devices.reshape(shape), AXES), "serve_tp")


def resharder(program: Program, where: Placement | None, dtype: str) -> Callable[[Params], Params]:
    """Training's parameters to those that are sampled from, once for all tokens of a rollout batch: weights have the
    dtype of their products, a router's stay exact.
    """

    def cast(params: Params) -> Params:
        return {path: leaf.astype(dtype) if in_products(path) else leaf for path, leaf in params.items()}

    if where is None:  # in float32 the very arrays
        return lambda params: params if dtype == "float32" else cast(params)
    return program.jit(cast, out_shardings=places(program.specs, where))


def sampling_params(program: Program, where: Placement | None, dtype: str) -> dict[str, jax.ShapeDtypeStruct]:
    """What `resharder` makes, as structs."""
    lies = None if where is None else places(program.specs, where)
    return {
        path: jax.ShapeDtypeStruct(
            leaf.shape,
            dtype if in_products(path) else leaf.dtype,
            sharding=leaf.sharding if lies is None else lies[path],
        )
        for path, leaf in program.abstract.params.items()
    }


def sampling_memory(settings: GspoConfig, program: Program, where: Placement | None, dtype: str) -> SamplingMemory:
    """What sampling needs, at its worst."""
    kept: list[Any] = [program.abstract, program.own_reference if settings.kl else None]
    made = sampling_params(program, where, dtype)
    if where is None:
        made = {path: leaf for path, leaf in made.items() if leaf.dtype != program.abstract.params[path].dtype}
    with placed(where):
        shared = spread("batch"), spread("act_heads")
    on_cpu = program.mesh.devices.flat[0].platform == "cpu"
    cache_dtype = jnp.dtype("float32" if on_cpu else dtype)
    noted = settings.routes != "ignore"
    cache = group_memory(
        program.model.text, cache_dtype, group_size(settings), sampling_ladders(settings), shared, noted
    )
    return SamplingMemory(shard_bytes(kept), shard_bytes(made), cache)


def check_memory(settings: GspoConfig, program: Program, where: Placement | None, dtype: str) -> None:
    """Before anything is compiled.

    Raises:
      InputError: the longest responses would not fit; says what they need, and what would.
    """
    found = sampling_memory(settings, program, where, dtype)
    device = next(each for each in program.mesh.devices.flat if each.process_index == jax.process_index())
    # CPU devices of a process share the host's memory.
    share = len(program.mesh.local_devices) if device.platform == "cpu" else 1
    there = memory_limit(device) // share
    if found.total <= there:
        return
    gb = lambda size: f"{size / 1e9:,.1f}"
    raise InputError(
        f"{settings.sample_prompts} prompts x {settings.group} responses of up to {settings.max_new_tokens:,} tokens "
        f"may need {gb(found.total)} GB on a device (keys and values {gb(found.cache.total)}, weights to sample from "
        f"{gb(found.weights)}, what training keeps {gb(found.state)}), but it has {gb(there)}; "
        f"{_advice(settings, program, where, dtype, there)}"
    )


def _advice(settings: GspoConfig, program: Program, where: Placement | None, dtype: str, there: int) -> str:
    fewer = settings.sample_prompts
    while fewer > 1:
        fewer //= 2
        less = dataclasses.replace(settings, sample_prompts=fewer)
        if sampling_memory(less, program, where, dtype).total <= there:
            return f"lower stage.sample_prompts ({fewer} would fit), stage.group or stage.max_new_tokens"
    return "lower stage.max_new_tokens or stage.group (a stage.sample_prompts of 1 is too many), or take more devices"
