"""Group sequence policy optimisation, the online half of Cascade RL.

python -m launch.train --config=configs/experiments/gspo.py:8b --config.data.meta=mmpr_tiny.parquet
    --config.run.init_from=DIR --config.run.workdir=DIR

Released settings: 512 prompts x 16 responses a rollout batch, 16 optimizer steps of 32 prompts each (241B: 8 of 64),
learning rate 1e-6 (241B: 8e-7), constant, no warm-up, weight decay 0.01, gradient norm 1.0 (241B: 0.5), prompts of at
most 8,192 tokens, responses of 32,768, clip range 0.2 (verl's default; the GSPO paper has 3e-4 and 4e-4: set
--config.stage.clip_low and clip_high), vision tower frozen, one epoch of MMPR-Tiny's 70,000 prompts (241B: two), that
is 136 rollout batches and 2,176 steps (241B: 273 and 2,184), 1.1M responses (241B: 2.2M), of at most 45B tokens with
their prompts (241B: 92B). Nothing is published for 20B-A4B, which has the settings of the rest. The load-balancing loss
is off, as in the release's actor. Of mixtures the experts that the sampler took are noted (metric router_agreement).

Hardware: what `sft.py` needs. Besides its state a step of sampling holds the keys and values of
stage.sample_prompts x 16 responses of 32,768 tokens, over all devices (TB): 0.5 (1B, 2B), 0.6 (4B, 8B), 0.7 (14B), 2.2
(38B), 0.2 (20B), 0.4 (30B), 3.2 (241B); `launch.plan --task=rollout` compiles it for a slice. A rollout batch takes
several times as long as its steps.
"""

from configs.experiments import ntp
from internvl_jax.training import Group, GspoConfig, TrainConfig

PROMPTS = 70_000


def get_config(size: str) -> TrainConfig:
    tiny, largest = size.startswith("tiny"), size.startswith("241b")
    stage = GspoConfig(
        mini_batch=64 if largest else 32, sample_prompts=32 if largest else 16 if size.startswith("38b") else 8
    )
    if tiny:
        stage = GspoConfig(prompts=8, group=4, mini_batch=4, max_prompt_tokens=128, max_new_tokens=64)
    steps = stage.prompts // stage.mini_batch
    rate = 1e-4 if tiny else 8e-7 if largest else 1e-6
    epochs = 2 if largest else 1
    config = ntp.config(size, learning_rate=rate, steps=steps * (10 if tiny else epochs * PROMPTS // stage.prompts))
    config.objective, config.stage = "gspo", stage
    if config.model.text.moe is not None:
        stage.routes = "note"
    config.run.balance, config.run.log_every = 0.0, 1
    config.optim.schedule, config.optim.warmup_ratio = "constant", 0.0
    config.optim.weight_decay, config.optim.clip_norm = 0.01, 0.5 if largest else 1.0
    config.optim.groups = (Group(r"^vit\.", frozen=True), *config.optim.groups)
    config.data.weighting = "token"
    if not tiny:
        # A row holds a prompt with the longest response; micro-batches that shorter ones leave empty are skipped.
        config.data.token_budget = stage.max_prompt_tokens + stage.max_new_tokens
        config.run.rows = stage.mini_batch * stage.group
        config.run.micro_batches = 8
    return config
