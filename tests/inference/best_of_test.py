"""Several answers to a question, and the best of them."""

import dataclasses

import numpy as np
import PIL.Image
import pytest

from internvl_jax.errors import InputError
from internvl_jax.grading import Graders
from internvl_jax.inference import (
    AGGREGATIONS,
    CriticChoice,
    SamplingParams,
    Selection,
    VoteChoice,
    best_of_n,
    candidate_seeds,
    complete,
    complete_groups,
    ranking,
)
from internvl_jax.sharding import bind

DRAWN = SamplingParams(max_new_tokens=6, temperature=1.0, seed=11)


@pytest.fixture(scope="module")
def shared(structure, params):
    """One model for the module: its programs stay compiled."""
    return bind(structure[0], params)


def ask(text, *seeds):
    draw = lambda seed: np.random.default_rng(seed).integers(0, 255, (28, 28, 3), dtype=np.uint8)
    parts = [{"type": "image", "image": PIL.Image.fromarray(draw(seed))} for seed in seeds]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def last_is_best(messages, responses):
    return Selection(len(responses) - 1, tuple(float(len(text)) for text in responses))


def test_the_first_is_greedy_and_each_is_what_it_is_alone(shared, processor):
    talks = [ask("what is it?" * (1 + i), *range(i)) for i in range(3)]
    done = []
    groups = complete_groups(shared, processor, talks, candidate_seeds(4, DRAWN), 8, DRAWN, done.append)
    assert done[-1] == 3
    for messages, group in zip(talks, groups, strict=True):
        greedy = complete(shared, processor, messages, dataclasses.replace(DRAWN, temperature=0.0))
        alone = [complete(shared, processor, messages, dataclasses.replace(DRAWN, seed=seed)) for seed in (11, 12, 13)]
        assert group == [greedy, *alone]
    found = best_of_n(shared, processor, talks[1], 4, DRAWN, last_is_best)
    assert list(found.candidates) == groups[1] and found.answer == groups[1][3]


def test_seeds():
    assert candidate_seeds(1, SamplingParams()) == (None,)
    assert candidate_seeds(4, dataclasses.replace(DRAWN, seed=2**32 - 1)) == (None, 2**32 - 1, 0, 1)
    with pytest.raises(InputError, match="best_of is 0; choose among 1 answer or more"):
        candidate_seeds(0, DRAWN)
    with pytest.raises(InputError, match="at temperature 0 all are the same"):
        candidate_seeds(2, SamplingParams())


def test_equals_keep_their_order():
    assert ranking([0.5, 0.7, 0.7, 0.5, 0.9]) == [4, 1, 2, 0, 3]


class Steps:
    """A critic whose scores are known."""

    def score(self, messages, responses):
        return [{"a": (0.9, 0.1, 0.95), "b": (0.5, 0.5), "c": (0.2, 1.0)}[text] for text in responses]


@pytest.mark.parametrize(("how", "best"), [("mean", 1), ("min", 2), ("last", 0)])
def test_a_critic_chooses_by_what_counts(how, best):
    found = CriticChoice(Steps(), how)([], ["c", "a", "b"])
    assert found.best == best and len(found.values) == len(found.steps) == 3
    assert found.values[1] == pytest.approx(AGGREGATIONS[how]((0.9, 0.1, 0.95)))


def test_a_vote_chooses_the_first_of_most():
    with Graders("exact", 10.0, 0) as graders:
        assert VoteChoice(graders)([], ["red", "blue", "Blue ", "<think>green"]) == Selection(1, (1.0, 2.0, 2.0, 0.0))
        assert VoteChoice(graders)([], ["red", "blue"]).best == 0
