"""Mixed preference optimisation, the offline half of Cascade RL: DPO 0.8 + BCO 0.2 + next-token loss 1.0, beta 0.1.

python -m launch.train --config=configs/experiments/mpo.py:8b --config.data.meta=META.json
    --config.run.init_from=DIR --config.run.workdir=DIR

META.json lists preference pairs in the released MMPR format (`launch.make_pairs` writes it). The released scripts take
one epoch of MMPR-v1.2 (about 200,000 pairs, paper) in steps of 256 pairs: 781 steps, learning rate 2e-7, at most 16,384
tokens a response, so at most 32,768 a pair (a row) and 6.6B in all. Hardware: what `sft.py` needs, and up to 1.6 times
as long a step for as many tokens.
"""

from configs.experiments import ntp
from internvl_jax.training import MpoConfig, TrainConfig

PAIRS, BATCH = 200_000, 256


def get_config(size: str) -> TrainConfig:
    tiny = size.startswith("tiny")
    config = ntp.config(size, learning_rate=1e-4 if tiny else 2e-7, steps=100 if tiny else PAIRS // BATCH)
    config.objective, config.stage = "mpo", MpoConfig(pairs=8 if tiny else BATCH)
    # A row holds both responses of a pair; rows that a batch does not fill cost next to nothing.
    config.data.weighting = "token"
    if not tiny:
        config.run.rows, config.run.micro_batches = 256, 4
    return config
