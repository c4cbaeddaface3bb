"""Supervised fine-tuning: every parameter trained, loss on answers with square averaging.

python -m launch.train --config=configs/experiments/sft.py:8b --config.data.meta=META.json
    --config.data.tokenizer=DIR --config.run.init_from=DIR --config.run.workdir=DIR

512 rows x 32,768 tokens x 8,000 steps = 134B tokens (paper: about 130B), learning rate 8e-5, for the 241B 2e-5
(released scripts). Hardware by docs/PLANS.md (estimates): v5p slices of 8 (1B), 16 (2B), 32 (4B), 64 (8B, 20B), 128
(14B, 30B), 256 (38B) and 512 (241B) chips, 53 to 238 s a step.
"""

from configs.experiments import ntp
from internvl_jax.training import TrainConfig


def get_config(size: str) -> TrainConfig:
    tiny = size.startswith("tiny")
    rate = 1e-3 if tiny else 2e-5 if size.startswith("241b") else 8e-5
    return ntp.config(size, learning_rate=rate, steps=1000 if tiny else 8000)
