"""What answers take of a device's memory, by arithmetic, and how much of it there is."""

import dataclasses
import math
import os
from collections.abc import Set

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from internvl_jax.inference.engine.buckets import Ladders
from internvl_jax.models import TextConfig

# Slots that every answer of a group has at first; twice as many when they are full, so that short answers don't pay for
# long ones.
FIRST_SLOTS = 2048
PIECE = 256  # the most tokens of an answer that a call writes, so that the host sees in time how many answers are left
TOGETHER = 8192  # tokens of several prompts that are read at a time


@dataclasses.dataclass(frozen=True)
class GroupSize:
    """Groups of answers that are written together.

    Attributes:
      prompts: how many.
      group: answers to each.
      prompt: tokens of the longest prompt.
      answer: tokens of the longest answer.
    """

    prompts: int
    group: int
    prompt: int
    answer: int


@dataclasses.dataclass(frozen=True)
class GroupMemory:
    """Bytes on a device, once all answers are as long as they may be.

    Attributes:
      prompts: keys and values of prompts.
      answers: those of answers.
      moving: the most that stands beside these while answers get more slots or become fewer rows: new arrays are made.
      routes: experts of the tokens of a call, whole on every device; the host takes them after it.
    """

    prompts: int
    answers: int
    moving: int
    routes: int

    @property
    def total(self) -> int:
        return self.prompts + self.answers + self.moving + self.routes


def group_memory(
    text: TextConfig,
    cache_dtype: jnp.dtype,
    size: GroupSize,
    ladders: Ladders,
    spread: tuple[int, int],
    routes: bool = False,
) -> GroupMemory:
    """What `Sampler.sample` keeps of groups of answers.

    Args:
      ladders: the sampler's; a size beyond them is taken as it is.
      spread: how many devices share the rows, and how many share a row.
      routes: whether the experts of every token are noted.
    """
    shards, tensor = spread
    heads = text.kv_heads * tensor // math.gcd(tensor, text.kv_heads)  # as often as devices need them
    prompts = -(-_up(size.prompts, ladders.rows) // shards)
    rows, slots = prompts * size.group, _up(size.answer, ladders.slots)
    slot = 2 * text.layers * heads * text.head_width * jnp.dtype(cache_dtype).itemsize // tensor
    prompt_slots = _up(size.prompt, ladders.prompts)
    read = min(prompts * shards, max(shards, TOGETHER // prompt_slots)) * prompt_slots
    experts = 2 * text.layers * text.moe.per_token if routes and text.moe is not None else 0
    before = FIRST_SLOTS  # what answers had before they got the last of their slots
    while 2 * before < slots:
        before *= 2
    grown = before if slots > before else 0
    fewer = -(-size.group // 2) * prompts * slots if rows > 1 else 0
    prompt_bytes = prompts * prompt_slots * slot
    # Where rows go to other devices, the keys of a layer, then its values, are whole on each of them.
    exchanged = shards * rows * slots // (2 * text.layers) if fewer and shards > 1 else 0
    moved = max(grown * rows, fewer + exchanged)
    return GroupMemory(
        prompts=prompt_bytes,
        answers=rows * slots * slot,
        moving=moved * slot + (prompt_bytes if moved else 0),
        routes=max(rows * shards * PIECE, read) * experts,
    )


def memory_limit(device: jax.Device) -> int:
    """Bytes of a device that programs may take: of a CPU, half of the host's memory."""
    stats = device.memory_stats() if device.platform != "cpu" else None
    return _half_of_host() if stats is None else stats["bytes_limit"]


def memory_free(devices: Set[jax.Device]) -> int:
    """Bytes of the fullest device that nobody has; of a CPU, half of the host's memory. All processes that the devices
    belong to say the same.
    """
    here = [device for device in devices if device.process_index == jax.process_index()]
    stats = [device.memory_stats() for device in here if device.platform != "cpu"]
    free = min((each["bytes_limit"] - each["bytes_in_use"] for each in stats if each), default=_half_of_host())
    if len(here) == len(devices):
        return free
    mebibytes = multihost_utils.process_allgather(np.int32(free >> 20))  # JAX has no 64 bits
    return int(mebibytes.min()) << 20


def _half_of_host() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _up(size: int, ladder: tuple[int, ...]) -> int:
    return next((each for each in ladder if each >= size), size)
