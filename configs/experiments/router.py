"""ViCO, second stage: router training. Binary cross-entropy on whether a tile's tokens are worth keeping; only the
router is trained.

python -m launch.train --config=configs/experiments/router.py:8b --config.data.meta=META.json
    --config.run.init_from=DIR --config.stage.reference=BASE --config.run.workdir=DIR

`run.init_from` is the workdir of the consistency stage, `stage.reference` the base model that it began with. Data: part
of SFT's, mostly OCR and VQA (paper); samples without pictures are left out.

512 rows x 32,768 tokens x 600 steps = 10B tokens of the policy (every sample up to five times: once in full and once
for each of four probed tiles), at most half as many of the reference. The paper says about 30B for both stages of ViCO,
and that targets are balanced; learning rate, window, epsilon and how a tile is probed are choices of this project. Only
the router has a backward pass. State: 6 bytes a parameter over all devices (the policy in float32, the reference in
bfloat16), 52 GB for the 8B. Hardware: what `sft.py` needs is more than enough, and a step takes less than half as long.
"""

from configs.experiments import vico
from internvl_jax.models import UNUSED_PARTS
from internvl_jax.training import Group, RouterConfig, TrainConfig


def get_config(size: str) -> TrainConfig:
    tiny = size.startswith("tiny")
    rest = Group(rf"^(?!router\.)|{UNUSED_PARTS}", frozen=True)
    config = vico.config(size, 1e-3 if tiny else 1e-4, 500 if tiny else 600, (rest,))
    config.objective, config.stage = "router", RouterConfig()
    if tiny:
        config.stage.window = 1024
    # What is too long with its probes is left out, and named in the log.
    config.data.over_long, config.data.tile_budget = "drop", 16 if tiny else 64
    config.run.balance = 0.0  # experts are frozen
    return config
