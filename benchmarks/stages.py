"""Steps of MPO and GSPO beside a step of SFT on as many tokens and tiles: what the losses cost."""

import statistics
import time
from typing import Any

import jax
import numpy as np

from configs.models.sizes import TINY, like
from internvl_jax.data import Batch, RowConfig, Sample, assemble_row, stack_rows
from internvl_jax.models import InternVLConfig
from internvl_jax.training import (
    DataConfig,
    GspoConfig,
    MpoConfig,
    OptimConfig,
    Pairs,
    RolloutBatch,
    RunConfig,
    TrainConfig,
    build,
)

_OPTIM = OptimConfig(
    learning_rate=1e-6, warmup_ratio=0.0, weight_decay=0.0, beta1=0.9, beta2=0.999, eps=1e-8, clip_norm=1.0
)

MODEL = like(  # 111M parameters
    TINY,
    {"image_size": 224, "patch_size": 14, "width": 512, "layers": 12, "heads": 8, "mlp": 2048, "init_std": 0.02},
    {
        "vocab": 32000,
        "width": 512,
        "layers": 12,
        "heads": 8,
        "kv_heads": 4,
        "head_width": 64,
        "mlp": 1536,
        "rope_theta": 1e6,
        "init_std": 0.02,
    },
    image_token_id=151,
)


def compare(config: InternVLConfig, texts: int, tokens: int, rounds: int, micro_batches: int = 1) -> dict[str, Any]:
    """Seconds of a step by stage, medians of steps taken in turns, and their ratios to SFT's.

    Args:
      config: the model's; it begins with random weights, and all of it is trained.
      texts: how many a step takes, each with a tile; an even number for every micro-batch.
      tokens: how many a text has, half of them supervised.
      rounds: steps of each stage.
      micro_batches: rows that a step takes one after the other; with several, MPO has a forward pass more.
    """
    sizes = micro_batches, texts // micro_batches, tokens
    stages = {
        "sft": ("ntp", None, _rows(config, *sizes, several=False)),
        "mpo": ("mpo", MpoConfig(pairs=texts // 2), _pairs(config, *sizes)),
        "gspo": ("gspo", GspoConfig(), _rollout(config, *sizes)),
    }
    runs = {}
    for name, (objective, stage, batch) in stages.items():
        program = build(_config(config, objective, stage, *sizes), jax.devices()[:1])
        state = program.from_params(program.random_params())
        runs[name] = [program, state, program.place(batch)]
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            program, state, batch = run
            started = time.perf_counter()
            run[1], metrics = program.step(state, batch)
            jax.block_until_ready((run[1], metrics))
            if turn:  # the first compiles
                seconds[name].append(time.perf_counter() - started)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    ratios = {f"{name}_ratio": round(median[name] / median["sft"], 3) for name in ("mpo", "gspo")}
    return {**{f"{name}_s": round(value, 4) for name, value in median.items()}, **ratios}


def _config(config: InternVLConfig, objective: str, stage: Any, rows: int, texts: int, tokens: int) -> TrainConfig:
    return TrainConfig(
        model=config,
        objective=objective,
        stage=stage,
        data=DataConfig("", "", 1, 1, False, texts * tokens, texts, "token"),
        optim=_OPTIM,
        run=RunConfig(workdir="", steps=1_000_000, rows=rows, micro_batches=rows, dtype="float32", remat="none"),
    )


def _rows(config: InternVLConfig, rows: int, texts: int, tokens: int, several: bool) -> Batch:
    """Each row of so many texts."""
    rng, side = np.random.default_rng(0), config.vision.image_size
    layout = RowConfig(
        texts * tokens, texts, side, config.tokens_per_tile, config.image_token_id, "token", several=several
    )
    samples = []
    for number in range(rows * texts):
        tokens_T = rng.integers(config.image_token_id + 1, config.text.vocab, tokens, dtype=np.int32)
        tokens_T[4 : 4 + config.tokens_per_tile] = config.image_token_id
        tiles = rng.integers(0, 256, (1, side, side, 3)).astype(np.uint8)
        samples.append(Sample("", tokens_T, np.arange(tokens) >= tokens // 2, tiles, number=number))
    return stack_rows([assemble_row(samples[start : start + texts], layout) for start in range(0, rows * texts, texts)])


def _pairs(config: InternVLConfig, rows: int, texts: int, tokens: int) -> Pairs:
    batch = _rows(config, rows, texts, tokens, several=True)
    return Pairs(batch, np.where(batch.samples_BX >= 0, np.float32(-tokens), np.float32(0)))


def _rollout(config: InternVLConfig, rows: int, texts: int, tokens: int) -> RolloutBatch:
    batch = _rows(config, rows, texts, tokens, several=True)
    rng, there_BS = np.random.default_rng(1), batch.samples_BX >= 0
    old_BT = np.where(batch.weights_BT > 0, -np.log(config.text.vocab), 0).astype(np.float32)
    advantages_BX = np.where(there_BS, rng.normal(size=there_BS.shape), 0).astype(np.float32)
    return RolloutBatch(batch, old_BT, advantages_BX, there_BS)
