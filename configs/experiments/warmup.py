"""Warm-up of the projector between a trained vision tower and a trained language model: next-token loss with square
averaging, the projector alone is trained.

python -m launch.train --config=configs/experiments/warmup.py:20b-a4b --config.data.meta=META.json
    --config.run.init_from=DIR --config.run.workdir=DIR

Stage 0 of the released GPT-OSS scripts, before CPT (`cpt.py`); nothing of the kind is published for the Qwen3 sizes,
which get the same values. `run.init_from` is a model directory of both parts, its projector untrained.

256 rows x 32,768 tokens x 5,000 steps = 42B tokens, learning rate 1e-3, warm-up over 1 % of the steps. Hardware: the
weights in float32 and activations of a row have to fit: half the chips of `sft.py` or fewer.
"""

from configs.experiments import ntp
from internvl_jax.training import Group, OptimConfig, TrainConfig


def get_config(size: str) -> TrainConfig:
    tiny = size.startswith("tiny")
    config = ntp.config(size, learning_rate=1e-3, steps=100 if tiny else 5000)
    config.optim.warmup_ratio = 0.01
    config.optim.groups = (Group(r"^(?!projector\.)", frozen=True), *OptimConfig.groups)
    config.run.balance = 0.0  # experts are frozen
    if not tiny:
        config.run.rows = 256
    return config
