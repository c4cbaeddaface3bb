"""Parameters of sampling: bounds, names, and one sentence for what can't be."""

import pytest

from internvl_jax.errors import InputError
from internvl_jax.inference.engine.sampling_params import SamplingParams


@pytest.mark.parametrize(
    "bad",
    [
        {"max_new_tokens": 0},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"repetition_penalty": 0.0},
        {"seed": -1},
        {"stop_strings": ("",)},
        {"min_p": 1.01},
        {"min_p": float("nan")},
        {"presence_penalty": 2.1},
        {"frequency_penalty": -2.1},
        {"logit_bias": ((5, 100.5),)},
        {"logit_bias": ((-1, 1.0),)},
        {"logit_bias": ((5,),)},
        {"logit_bias": 5},
        {"logit_bias": tuple((token, 1.0) for token in range(301))},
        {"logit_bias": ((5, 1.0), (6, 1.0), (5, 2.0))},
        {"min_tokens": -1},
        {"min_tokens": 257},
        {"ignore_eos": 1},
        {"logprobs": 21},
    ],
)
def test_bad_values(bad):
    with pytest.raises(InputError, match=next(iter(bad))) as caught:
        SamplingParams(**bad)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_the_largest_values():
    biases = [[token, 100] for token in range(300)]
    params = SamplingParams(min_p=1, presence_penalty=-2, min_tokens=256, logprobs=20, logit_bias=biases)
    assert params.logit_bias[299] == (299, 100)
    assert hash(params) == hash(SamplingParams.named(**vars(params)))


def test_names_as_openai_has_them():
    named = SamplingParams.named
    assert named(max_tokens=7, stop="x", top_p=0.5) == SamplingParams(7, top_p=0.5, stop_strings=("x",))
    assert named(max_completion_tokens=7, stop=["x", "y"]) == SamplingParams(7, stop_strings=("x", "y"))
    assert named(stop_token_ids=[3]) == SamplingParams(stop_token_ids=(3,))
    biases = ((5, -100), (17, 2.5))
    assert named(logit_bias={"5": -100, 17: 2.5}) == named(logit_bias=biases) == SamplingParams(logit_bias=biases)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"max_token": 7}, "no parameter 'max_token' .did you mean 'max_tokens'"),
        ({"max_tokens": 7, "max_new_tokens": 8}, "has max_new_tokens twice, as max_new_tokens too"),
        ({"max_tokens": 0}, "sampling.max_new_tokens is 0"),
        ({"stop": ""}, "sampling.stop_strings"),
        ({"stop": 3}, "sampling.stop_strings is 3"),
        ({"logit_bias": {"a": 1}}, "sampling.logit_bias has the key 'a'; its keys must be ids of tokens"),
        ({"logit_bias": {"-1": 1}}, "the key '-1'"),
        ({"logit_bias": {True: 1}}, "the key 'True'"),
        ({"logit_bias": {"9" * 5000: 1}}, "the key '9999"),
        ({"logit_bias": {"5": "1"}}, r"sampling.logit_bias\[0\]\[1\] is '1'"),
        ({"logit_bias": {"5": 1, 5: 1}}, "sampling.logit_bias has token 5 twice; give it one bias"),
        ({"logit_bias": 5}, "sampling.logit_bias is 5; it must be a list of a pair of a whole number from 0"),
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens is 9, but max_new_tokens only 8"),
    ],
)
def test_wrong_names_and_values_are_one_sentence(values, sentence):
    with pytest.raises(InputError, match=sentence):
        SamplingParams.named(**values)


def test_stop_ids():
    assert SamplingParams(stop_token_ids=(3, 9)).stop_ids((7, 3)) == (7, 3, 9)
    assert SamplingParams(stop_token_ids=(3, 9), ignore_eos=True).stop_ids((7, 3)) == (3, 9)
