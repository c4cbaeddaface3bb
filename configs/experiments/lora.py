r"""Supervised fine-tuning of low-rank adapters on the language model, as the LoRA scripts of InternVL 2.x have it.

python -m launch.train --config=lora:8b --config.data.meta=META.json --config.run.init_from=DIR
    --config.run.workdir=DIR

Rank 16, alpha twice that, dropout 0.05, learning rate 4e-5, 16 rows of 8,192 tokens, up to 6 tiles a picture, no drop
path; everything else is frozen and in bfloat16. (There a row is a sample, here it is packed full of them.) Other parts
by pattern: --config.lora.targets='^(vit|lm)\.layers', the projector whole with --config.lora.whole='^projector'. Every
stage takes these fields: --config=gspo:8b --config.lora.rank=16. docs/LORA.md has a worked example.

Hardware: a step is eight micro-batches of two rows, which one GPU of 80 GB (8B) takes together: 74 GB by plan, for
which a CPU's compiler stands in. Four chips (v6e:2x2) share four rows: --config.run.micro_batches=4. `launch.plan` says
what else there is room for (run.remat).
"""

import dataclasses

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
    # Of a frozen tower: without it the text alone decides what is learned.
    config.model = dataclasses.replace(config.model, vision=dataclasses.replace(config.model.vision, drop_path=0.0))
    if not tiny:
        config.data.token_budget, config.data.tile_budget, config.data.max_tiles = 8192, 24, 6
        config.run.rows, config.run.micro_batches = 16, 8
    return config
