"""Every stage by its name. A new one is its module, its line here, an experiment file and a test."""

from internvl_jax.training.stages.gspo.stage import GSPO
from internvl_jax.training.stages.mpo import MPO
from internvl_jax.training.stages.ntp import NTP
from internvl_jax.training.stages.vico import CONSISTENCY, ROUTER

STAGES = {stage.name: stage for stage in (NTP, MPO, GSPO, CONSISTENCY, ROUTER)}
