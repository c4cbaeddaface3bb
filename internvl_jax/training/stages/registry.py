"""From a checked config to its objective."""

from internvl_jax.training.config import TrainConfig
from internvl_jax.training.stages.balance import Balance, NoBalance
from internvl_jax.training.stages.base import Objective
from internvl_jax.training.stages.gspo.objective import Gspo
from internvl_jax.training.stages.mpo import Mpo
from internvl_jax.training.stages.ntp import NextToken
from internvl_jax.training.stages.vico import Consistency, Route


def make_objective(config: TrainConfig) -> Objective:
    run = config.run
    balance = NoBalance() if config.model.text.moe is None else Balance(run.balance)
    return {
        "ntp": lambda: NextToken(balance, run.logprob_chunk),
        "gspo": lambda: Gspo(config.stage, balance, run.logprob_chunk),
        "mpo": lambda: Mpo(config.stage, balance, run.logprob_chunk),
        "consistency": lambda: Consistency(balance, run.logprob_chunk),
        "router": lambda: Route(config.stage, run.logprob_chunk),
    }[config.objective]()
