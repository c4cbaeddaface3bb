"""Which of several responses to a question is best: a critic says so, or where there is none their vote.

Source: InternVL3 (arXiv 2504.10479) 2.4 has the mean over a response's steps; self-consistency is arXiv 2203.11171.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal, Protocol

from internvl_jax.data import Messages
from internvl_jax.grading import Graders, votes
from internvl_jax.inference.critic import Critic, StepScores

Aggregation = Literal["mean", "min", "last"]
AGGREGATIONS: dict[Aggregation, Callable[[StepScores], float]] = {
    "mean": lambda scores: sum(scores) / len(scores),
    "min": min,
    "last": lambda scores: scores[-1],
}


@dataclasses.dataclass(frozen=True)
class Selection:
    """Which of several responses is best.

    Attributes:
      best: its number.
      values: what each is worth: the critic's score, or how many give the same answer.
      steps: the critic's scores of the steps of each; () without a critic.
    """

    best: int
    values: tuple[float, ...]
    steps: tuple[StepScores, ...] = ()


class Chooser(Protocol):
    """Says which response to a question is best."""

    def __call__(self, messages: Messages, responses: Sequence[str]) -> Selection: ...


@dataclasses.dataclass(frozen=True)
class CriticChoice:
    """The response whose steps a critic holds for best, on the whole; of equals the first."""

    critic: Critic
    aggregation: Aggregation = "mean"

    def __call__(self, messages: Messages, responses: Sequence[str]) -> Selection:
        """See `Critic.score`."""
        steps = self.critic.score(messages, responses)
        values = [AGGREGATIONS[self.aggregation](scores) for scores in steps]
        return Selection(ranking(values)[0], tuple(values), tuple(steps))


@dataclasses.dataclass(frozen=True)
class VoteChoice:
    """The first response that gives the answer of most; the very first where none has an answer."""

    graders: Graders

    def __call__(self, messages: Messages, responses: Sequence[str]) -> Selection:
        """The votes of the responses."""
        del messages
        values = votes(responses, self.graders)
        return Selection(ranking(values)[0], tuple(map(float, values)))


def ranking(values: Sequence[float]) -> list[int]:
    """Numbers of the responses from the highest value to the lowest, those of equal ones in their order."""
    return sorted(range(len(values)), key=lambda number: -values[number])
