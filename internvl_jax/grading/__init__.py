"""Text in, score out: final answers, mathematical equivalence, rewards by name, worker processes; no jax."""

from internvl_jax.grading.pool import Graders
from internvl_jax.grading.rewards import REWARDS, Score, get_reward, is_right
from internvl_jax.grading.voting import votes

__all__ = ["REWARDS", "Graders", "Score", "get_reward", "is_right", "votes"]
