"""Supervised fine-tuning: every parameter trained, loss on answers with square averaging.

python -m launch.train --config=configs/experiments/sft.py:8b --config.data.meta=META.json
    --config.data.tokenizer=DIR --config.run.init_from=DIR --config.run.workdir=DIR

512 rows x 32,768 tokens x 8,000 steps = 134B tokens (paper: about 130B), learning rate 8e-5 (released scripts).
"""

from configs.experiments import ntp
from internvl_jax.training.config import TrainConfig


def get_config(size: str) -> TrainConfig:
    tiny = size.startswith("tiny")
    return ntp.config(size, learning_rate=1e-3 if tiny else 8e-5, steps=1000 if tiny else 8000)
