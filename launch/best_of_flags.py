"""Best-of-N: flags of the launchers that choose among several answers to a question."""

import contextlib
import dataclasses
import typing
from collections.abc import Iterator

from absl import flags

from internvl_jax.data import THINKING_SAMPLING
from internvl_jax.errors import InputError
from internvl_jax.evaluation import open_graders
from internvl_jax.inference import (
    AGGREGATIONS,
    Aggregation,
    Chooser,
    CriticChoice,
    SamplingParams,
    VoteChoice,
    candidate_seeds,
)
from launch import critics

BEST_OF = flags.DEFINE_integer(
    "best_of", 1, "answers to a question, the first greedy and the others drawn; the best of them counts", 1, 64
)
GRADER = flags.DEFINE_string(
    "grader",
    "exact",
    "who says what is right, and which answers agree: exact, answer, mmpr, or your own as package.module:function",
)
_SCORE = flags.DEFINE_enum("critic_score", "mean", list(AGGREGATIONS), "what of its scores of the steps counts")


def is_asked() -> bool:
    """Whether there are several answers; InputError for a critic that is none, or has nothing to choose among."""
    if critics.CRITIC.value is None and _SCORE.present:
        raise InputError("--critic_score says what of a critic's scores counts; give --critic")
    if critics.CRITIC.value is not None:
        if BEST_OF.value == 1:
            raise InputError("--critic chooses among several answers; give --best_of=8")
        critics.check()
    return BEST_OF.value > 1


def drawn(sampling: SamplingParams) -> SamplingParams:
    """How candidates are drawn: at temperature 0.6 and top_p 0.95, unless flags say otherwise."""
    usual: dict[str, typing.Any] = {
        name: value for name, value in THINKING_SAMPLING.items() if not flags.FLAGS[name].present
    }
    sampling = dataclasses.replace(sampling, **usual)
    candidate_seeds(BEST_OF.value, sampling)
    return sampling


def chosen_by() -> str:
    """Who chooses, in words."""
    if critics.CRITIC.value is None:
        return f"vote ({GRADER.value})"
    return f"critic {critics.directory()} ({_SCORE.value} of its steps' scores)"


@contextlib.contextmanager
def chooser() -> Iterator[Chooser]:
    """Who chooses: the critic, which is loaded now, or the vote."""
    if critics.CRITIC.value is None:
        with open_graders(GRADER.value) as graders:
            yield VoteChoice(graders)
        return
    yield CriticChoice(critics.load(), typing.cast(Aggregation, _SCORE.value))  # an enum's flag has no other
