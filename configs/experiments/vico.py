"""What both stages of ViCO share: a Flash model, rows as in SFT."""

import dataclasses

from configs.experiments import ntp
from configs.models.sizes import FLASH
from internvl_jax.training import Group, OptimConfig, TrainConfig


def config(size: str, learning_rate: float, steps: int, first_groups: tuple[Group, ...]) -> TrainConfig:
    """A size, with or without -flash at its end, and the groups of parameters that come before those of SFT.

    No drop path: with it a model is not even its own copy, and what compressing costs drowns.
    """
    made = ntp.config(size, learning_rate, steps)
    made.model = dataclasses.replace(
        made.model, vision=dataclasses.replace(made.model.vision, drop_path=0.0), flash=made.model.flash or FLASH
    )
    made.data.weighting = "sample"  # the paper's 1 / N: the mean over the tokens of a response, then over responses
    made.optim.groups = (*first_groups, *OptimConfig.groups)
    return made
