"""The next-token stages: what CPT and SFT share, and what the tiny models differ in."""

import dataclasses

from configs.models import sizes
from internvl_jax.models import FLASH_PARTS, family_of
from internvl_jax.training import DataConfig, Group, OptimConfig, RunConfig, TrainConfig

# Released scripts: 0 for 1B, 2B and 4B.
DROP_PATH = {"8b": 0.1, "14b": 0.1, "38b": 0.4, "20b-a4b": 0.1, "30b-a3b": 0.1, "241b-a28b": 0.4}
# Coefficient of the load-balancing loss: router_aux_loss_coef of the released configs.
BALANCE = {"20b-a4b": 0.9, "30b-a3b": 0.001, "241b-a28b": 0.001, "tiny-moe": 0.001}


def config(size: str, learning_rate: float, steps: int) -> TrainConfig:
    """Released CPT / SFT hyperparameters (batch of 512 packed rows of 32,768 tokens and 96 tiles)."""
    model, base = sizes.get(size), size.removesuffix("-flash")
    # No tile is compressed here: what a Flash model has besides gets no gradient.
    groups = OptimConfig.groups if model.flash is None else (Group(FLASH_PARTS, frozen=True), *OptimConfig.groups)
    vision = dataclasses.replace(model.vision, drop_path=DROP_PATH.get(base, 0.0))
    tiny = size.startswith("tiny")
    return TrainConfig(
        model=dataclasses.replace(model, vision=vision),
        objective="ntp",
        data=DataConfig(
            meta="",
            tokenizer="",
            min_tiles=1,
            max_tiles=1 if tiny else 12,
            thumbnail=not tiny,
            token_budget=512 if tiny else 32768,
            tile_budget=16 if tiny else 96,
            weighting="square",
            template=family_of(model.text).template,
        ),
        optim=OptimConfig(
            learning_rate=learning_rate,
            warmup_ratio=0.03,
            weight_decay=0.05,
            beta1=0.9,
            beta2=0.999,
            eps=1e-8,
            clip_norm=1.0,
            groups=groups,
        ),
        run=RunConfig(
            workdir="",
            steps=steps,
            rows=8 if tiny else 512,
            dtype="float32" if tiny else "bfloat16",
            remat="none" if tiny else "full",
            balance=BALANCE.get(base, 0.0),
        ),
    )
