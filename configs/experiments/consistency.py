"""ViCO, first stage: consistency training. KL from the frozen reference at full resolution to the policy, which sees
each picture full or compressed; every parameter trained but the router.

python -m launch.train --config=configs/experiments/consistency.py:8b --config.data.meta=META.json
    --config.run.init_from=DIR --config.run.workdir=DIR

`run.init_from` is the base model after its last stage (a Flash model will do); it is the reference too, unless
`stage.reference` names another. Data: mainly that of SFT (paper).

512 rows x 32,768 tokens x 1,200 steps = 20B tokens of the policy, as many of the reference. The paper says about 30B
for both stages of ViCO and nothing else: the learning rate is an eighth of SFT's, ten times that for the compressed
branch, which begins with random values; other settings are SFT's. State: 18 bytes a parameter over all devices
(parameters, gradients and two moments in float32, the reference in bfloat16), 159 GB for the 8B. Hardware: what
`sft.py` needs; a step takes about four thirds as long, as the reference has a forward pass besides.
"""

from configs.experiments import vico
from internvl_jax.training import ConsistencyConfig, Group, TrainConfig


def get_config(size: str) -> TrainConfig:
    tiny = size.startswith("tiny")
    branch = r"^compressed\."
    groups = (
        Group(r"^router\.", frozen=True),
        Group(branch + r".*(\.bias|norm\.scale)$", learning_rate=10.0, weight_decay=0.0),
        Group(branch, learning_rate=10.0),
    )
    config = vico.config(size, 3e-4 if tiny else 1e-5, 1000 if tiny else 1200, groups)
    config.objective, config.stage = "consistency", ConsistencyConfig()
    return config
