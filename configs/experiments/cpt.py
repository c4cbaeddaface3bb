"""Continued pre-training: every parameter trained, next-token loss with square averaging.

python -m launch.train --config=configs/experiments/cpt.py:8b --config.data.meta=META.json
    --config.data.tokenizer=DIR --config.run.init_from=DIR --config.run.workdir=DIR

512 rows x 32,768 tokens x 15,000 steps = 252B tokens (paper: about 250B). The paper gives no learning rate for the
Qwen3 sizes; 2e-5 is that of the released GPT-OSS script, the only public one of this stage. Hardware: what `sft.py`
needs, and as long a step.
"""

from configs.experiments import ntp
from internvl_jax.training import TrainConfig


def get_config(size: str) -> TrainConfig:
    tiny = size.startswith("tiny")
    return ntp.config(size, learning_rate=1e-3 if tiny else 2e-5, steps=1000 if tiny else 15000)
