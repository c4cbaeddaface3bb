"""How a model is laid out on a slice: mesh, rules, remat and micro-batches, by arithmetic.

Training: with rows of 32,768 tokens, gathering a layer's weights costs a few hundredths of its products, so weights are
spread over many chips ('fsdp') and every chip takes one row at a time, or several short ones; experts are spread over a
few, between which tokens travel ('moe'). Serving: heads, inner widths and vocabulary are spread over as many chips as
there are key/value heads; beyond, rows are, and whole experts.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from internvl_jax import sharding
from internvl_jax.errors import InputError
from internvl_jax.models import (
    PARTS,
    CacheName,
    InternVLConfig,
    Quantised,
    Runtime,
    TextConfig,
    stored_dtype,
    with_quantised,
)
from internvl_jax.planning.chips import CHIPS, Topology
from internvl_jax.sharding import parse_mesh
from internvl_jax.training import TrainConfig, trained_params, with_adapter

# Bytes of a parameter in training: its value, its gradient and two moments, all in float32.
_STATE = 16
REMATS = ("mlp", "gate", "qkv", "attention", "full")  # from what recomputes least to what needs least memory
_ENOUGH = 16384  # tokens of short rows that a chip takes at a time: gathering weights hides behind them
_HEADROOM = 0.97  # share of the memory that programs get; the runtime keeps some, and gaps between buffers are lost


@dataclasses.dataclass(frozen=True)
class Serving:
    """What a server holds at a time.

    Attributes:
      rows: how many conversations.
      prompt: tokens of a prompt, where it is read at once (prefill).
      slots: tokens that a row's cache has room for, of prompt and answer together.
      chunk: tokens of prompts that are read while others are answered.
      tiles: tiles of a picture.
      page: tokens of a page, of which there are enough for full rows; None: rows have slots.
      quantise: how products with quantised weights are made; None: weights are as the model has them.
      cache: the dtype of keys and values, where it is not that of activations.
    """

    rows: int
    prompt: int
    slots: int
    chunk: int = 512
    tiles: int = 13
    page: int | None = None
    quantise: Quantised | None = None
    cache: CacheName | None = None

    def __post_init__(self) -> None:
        if min(self.rows, self.prompt, self.chunk, self.tiles) < 1 or self.slots < max(self.prompt, self.chunk):
            raise InputError(f"serving {self} makes no sense: all are at least 1, and slots hold a prompt and a chunk")
        if self.page is not None and self.page < 1:
            raise InputError(f"pages of {self.page} tokens make no sense; give them 1 or more")
        if self.page is not None and self.cache is not None:
            raise InputError(f"rows that have pages keep no {self.cache} keys and values; leave one out")


def specs(model: InternVLConfig) -> dict[str, sharding.ParamSpec]:
    return sharding.structure(PARTS["all"], model, Runtime())[1]


def parameters(model: InternVLConfig) -> int:
    return sum(math.prod(spec.shape) for spec in specs(model).values())


@dataclasses.dataclass(frozen=True)
class Trained:
    """What decides the memory of a run, of what it trains and what stays as it is.

    Attributes:
      state: bytes of all parameters, and of the gradients and moments of those that are trained.
      text, tower: whether the backward pass goes through the layers of the language model, of the vision tower.
      head: bytes of what a chip holds of the output matrix while it makes logits.
    """

    state: float
    text: bool
    tower: bool
    head: float

    @classmethod
    def of(cls, config: TrainConfig) -> "Trained":
        model = with_adapter(config.model, config.lora)
        held = specs(model)
        trained = trained_params(held, model, config.optim)
        # What is frozen beside adapters has no masters in float32.
        dtype = np.dtype(config.run.dtype if config.lora.active else np.float32)
        frozen = lambda path: stored_dtype(path, dtype).itemsize
        sizes = {path: math.prod(spec.shape) for path, spec in held.items()}
        state = sum(size * (_STATE if path in trained else frozen(path)) for path, size in sizes.items())
        # A head and a norm at the end of the language model are reached without its layers, and the router without any.
        above = {path for path in trained if not path.startswith(("lm.head.", "lm.norm.", "router."))}
        head = "lm.embed.weight" if config.model.text.tie_embeddings else "lm.head.weight"
        of_head = [path for path in sizes if path.startswith(head)]
        # Gathered, its gradient, and that of all chunks so far, in float32; a frozen one has none.
        copies = 3 * 4 if trained.keys() & set(of_head) else max(map(frozen, of_head))
        size = config.model.text.vocab * config.model.text.width
        return cls(state, bool(above), any(path.startswith("vit.") for path in trained), copies * size)


def training_layouts(config: TrainConfig, where: Topology, off: float = 0.0) -> list[dict[str, Any]]:
    """Fields of RunConfig, from what recomputes least to what needs least memory, of all that should fit by arithmetic.

    Args:
      off: bytes by which a chip's memory is known to be larger than by arithmetic, from what was compiled.

    Raises:
      InputError: the rows can't be spread over the chips.
    """
    rows, trained = config.run.rows, Trained.of(config)
    if rows % where.chips:
        raise InputError(f"{rows} rows can't be spread over the {where.chips} chips of {where}; give another run.rows")
    # Over a whole torus the TPU compiler gathers weights by sums of padded shards, which send twice as much (2026-11):
    # four copies of the state where there is room.
    copies = 4 if where.chips >= 16 and _fixed(config, trained, where.chips // 4) < where.chip.hbm / 4 else 1
    copies = math.lcm(copies, where.slices)  # between slices goes the sum of gradients alone
    expert = _expert(config.model, where.chips // copies)
    axes = {"data": copies, "fsdp": where.chips // copies // expert, "expert": expert}
    mesh = ",".join(f"{axis}={count}" for axis, count in axes.items() if count > 1 or axis == "fsdp")
    rules = "fsdp" if config.model.text.moe is None else "moe"
    together = _together(config, rows // where.chips)
    layout = {"mesh": mesh, "rules": rules, "micro_batches": rows // where.chips // together, "offload": "none"}
    # `kept` leans high, and compiling decides.
    free = where.chip.hbm - _fixed(config, trained, where.chips // copies) - off
    # Experts keep nothing of their inner products.
    several = REMATS if config.model.text.moe is None else REMATS[REMATS.index("qkv") :]
    remats = [name for name in several[:-1] if kept(config, trained, name, together) <= free]
    host = where.chip.host_memory * _HEADROOM
    # The host's memory is further away: it is for what no layout has room for on the chip.
    offloads = [] if remats else [name for name in several[:-1] if offloaded(config, name, together) <= host]
    found = [layout | {"remat": remat} for remat in remats]
    found += [layout | {"remat": REMATS[-1], "offload": offload} for offload in offloads]
    return [*found, layout | {"remat": REMATS[-1]}]


def arithmetic(config: TrainConfig, where: Topology, layout: dict[str, Any]) -> float:
    """Bytes that a chip needs for a step in one of these layouts, without offload."""
    trained, copies = Trained.of(config), parse_mesh(layout["mesh"]).get("data", 1)
    together = config.run.rows // where.chips // layout["micro_batches"]
    return _fixed(config, trained, where.chips // copies) + kept(config, trained, layout["remat"], together)


def _expert(model: InternVLConfig, chips: int) -> int:
    """How many chips share a layer's experts: no more than a token has experts (see `by_owner`), and at most eight."""
    moe = model.text.moe
    if moe is None:
        return 1
    return max(count for count in (1, 2, 4, 8) if count <= moe.per_token and chips % count == moe.experts % count == 0)


def _together(config: TrainConfig, rows: int) -> int:
    """How many of a chip's rows it takes at a time: as many short ones as come to `_ENOUGH` tokens."""
    return max(
        count for count in range(1, rows + 1) if rows % count == 0 and (count - 1) * config.data.token_budget < _ENOUGH
    )


def kept(config: TrainConfig, trained: Trained, remat: str, rows: int = 1) -> float:
    """Bytes that a chip's rows need: what their forward pass keeps for the backward one, and the work of the largest
    layer.
    """
    model, tokens = config.model, config.data.token_budget * rows
    text, vision = model.text, model.vision
    patches = _patches(config, rows)
    saved: float = 2 * trained.text * text.layers * tokens * (text.width + _named(text, remat))
    saved += 2 * trained.tower * vision.layers * patches * vision.width
    inner = text.mlp if text.moe is None else text.mlp * text.moe.per_token
    work = 4 * tokens * (4 * inner + 4 * text.heads * text.head_width) + 16 * text.heads * tokens * 128 * 2
    logits = trained.head + 3 * 4 * config.run.logprob_chunk * text.vocab
    return saved + max(work, 4 * patches * 3 * vision.mlp) + logits


def offloaded(config: TrainConfig, offload: str, rows: float = 1, beside: str = "full") -> float:
    """Bytes in the host's memory of what a chip's rows keep there, beside what this remat keeps on the chip."""
    text, vision, trained = config.model.text, config.model.vision, Trained.of(config)
    row = text.width + _named(text, offload) - _named(text, beside)
    tokens = config.data.token_budget * rows
    of_tower = trained.tower * vision.layers * _patches(config, rows) * vision.width
    return 2 * (trained.text * text.layers * tokens * row + of_tower)


def _patches(config: TrainConfig, rows: float) -> float:
    return rows * config.data.tile_budget * (config.model.vision.grid**2 + 1)


def _named(text: TextConfig, remat: str) -> int:
    """Numbers that a token has in a layer's arrays that are kept by name."""
    level = REMATS[::-1].index(remat)
    lanes = lambda width: -(-width // 128) * 128  # the last dimension is filled up to so many
    row = (level >= 1) * text.heads * lanes(text.head_width)
    row += (level >= 2) * (text.heads + 2 * text.kv_heads) * lanes(text.head_width)
    return row + (max(0, level - 2) * text.mlp if text.moe is None else 0)


def _fixed(config: TrainConfig, trained: Trained, chips: int) -> float:
    """Bytes that a chip holds of the state and of its rows' pixels, these twice: as given, and in micro-batches."""
    pixels = config.run.rows * config.data.tile_budget * config.model.vision.image_size**2 * 3
    return (trained.state + 2 * pixels) / chips


def serving_layout(config: TrainConfig, where: Topology, size: Serving) -> tuple[dict[str, int], str]:
    """Mesh axes and rules.

    Raises:
      InputError: more groups of chips than rows.
    """
    text = config.model.text
    axes = sharding.serving_axes(where.chips, text.kv_heads, None if text.moe is None else text.moe.experts)
    groups = where.chips // axes["tensor"]
    if size.rows % groups:
        raise InputError(
            f"{size.rows} rows can't be spread over {groups} groups of {axes['tensor']} chips; give more rows"
        )
    return axes, "serve_tp"


def candidates(config: TrainConfig, task: str, size: Serving, chip: str) -> Iterator[Topology]:
    """The slices of a chip whose memory should suffice for a task by arithmetic, smallest first.

    Raises:
      InputError: no such chip, or it comes in no slices.
    """
    if chip not in CHIPS or not CHIPS[chip].slices:
        raise InputError(
            f"topology is {chip!r}; write a chip with its shape, as v5p:4x4x4, or one of {', '.join(CHIPS)}"
        )
    for shape in CHIPS[chip].slices:
        where = Topology.parse(f"{chip}:{shape}")
        if _needs(config, task, size, where) <= CHIPS[chip].hbm * _HEADROOM:
            yield where


def _needs(config: TrainConfig, task: str, size: Serving, where: Topology) -> float:
    model, text = config.model, config.model.text
    if task == "rollout":
        return 0.0 if config.run.rows % where.chips == 0 and where.chips > 1 else math.inf
    if task == "train":
        trained = Trained.of(config)
        least = _fixed(config, trained, where.chips) + kept(config, trained, REMATS[-1]) * 0.9
        return math.inf if config.run.rows % where.chips else least
    try:
        axes, _ = serving_layout(config, where, size)
    except InputError:
        return math.inf
    dtype = jnp.dtype(jnp.bfloat16)
    cache = 2 * text.layers * size.rows * size.slots * text.kv_heads * text.head_width / where.chips
    cache *= Runtime(dtype, cache=size.cache).cache_dtype.itemsize
    held = specs(with_quantised(model, size.quantise))
    sizes = {path: math.prod(spec.shape) * stored_dtype(path, dtype).itemsize for path, spec in held.items()}
    experts = sum(sizes[path] for path, spec in held.items() if "expert" in spec.axes)
    weights = (sum(sizes.values()) - experts * (1 - 1 / axes.get("expert", 1))) / axes["tensor"]
    return weights + (cache if task == "decode" else cache * size.prompt / size.slots)
