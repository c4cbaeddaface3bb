"""Supervised fine-tuning of low-rank adapters on the language model, as the LoRA scripts of InternVL 2.x have it.

python -m launch.train --config=lora:8b --config.data.meta=META.json --config.run.init_from=DIR
    --config.run.workdir=DIR

Rank 16, alpha twice that, learning rate 4e-5, dropout 0.05; everything else is frozen and in bfloat16. A batch of 128
rows of 16,384 tokens. Other parts by pattern: --config.lora.targets='^vit|^lm', the projector whole with
--config.lora.whole='^projector'. Every stage takes these fields: --config=gspo:8b --config.lora.rank=16.
docs/LORA.md has a worked example.
"""

from configs.experiments import ntp
from internvl_jax.training import LoraSettings, TrainConfig


def get_config(size: str) -> TrainConfig:
    tiny = size.startswith("tiny")
    config = ntp.config(size, learning_rate=1e-3 if tiny else 4e-5, steps=100 if tiny else 1000)
    # Experts are no modules of their own in transformers 5, so PEFT and vLLM would not take adapters of them.
    experts = config.model.text.moe is not None
    targets = r"^lm\.layers\.\d+\.attn\.[qkvo]$" if experts else LoraSettings.targets
    config.lora = LoraSettings(rank=16, alpha=32.0, dropout=0.05, targets=targets)
    config.run.balance = 0.0  # routers stay as they are
    if not tiny:
        config.data.token_budget, config.data.tile_budget = 16384, 48
        config.run.rows = 128
    return config
