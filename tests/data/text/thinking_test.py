"""Thinking mode has one definition: what is asked, how it is switched, and what each reader makes of an answer."""

import inspect
import typing

import pytest

from internvl_jax import data
from internvl_jax.data.text import thinking
from internvl_jax.grading import answers
from internvl_jax.inference import SamplingParams
from internvl_jax.serving.limits import Limits

# (text, prediction, thinking) as VLMEvalKit at e8e78f05 splits them with SPLIT_THINK.
RECORDED = [
    ("<think>a</think>b", "b", "a"),
    ("<think>\nlong\n</think>\n\nThe answer", "The answer", "long"),
    ("no tags", "no tags", ""),
    ("<think>unfinished reasoning", "<think>unfinished reasoning", ""),
    ("a</think>b", "b", "a</think>"),
    ("<think>x</think>y</think>z", "z", "<think>x</think>y</think>"),
    ("<think>x</think>", "", "x"),
    ("pre<think>x</think> post", "post", "x"),
    ("<think></think>ok", "ok", ""),
    ("x<think>y", "x<think>y", ""),
]


@pytest.mark.parametrize(("text", "prediction", "thought"), RECORDED)
def test_predictions_are_split_as_recorded(text, prediction, thought):
    assert thinking.split_prediction(text) == (thought, prediction)


@pytest.mark.parametrize(("text", "prediction", "thought"), RECORDED)
def test_rewards_read_what_evaluation_reads(text, prediction, thought):
    """An unfinished thought is no answer for a reward, and the whole prediction for VLMEvalKit."""
    said = answers.after_thinking(text)
    if thinking.is_unfinished(text):
        assert said is None and prediction == text
    else:
        assert said.strip() == prediction
    assert (answers.THINK, answers.THINK_END) == (data.THINK, data.THINK_END)


@pytest.mark.parametrize("text", [text for text, _, _ in RECORDED if text.startswith("<think>")])
def test_readers_agree_but_for_what_cannot_be_known_as_it_comes(text):
    """Who sees a text grow takes the first end for the end, and shows nothing of a thought that has none."""
    thought, answer = thinking.split_thinking(text)
    if thinking.is_unfinished(text):
        assert (thought, answer) == ("unfinished reasoning", "")
    elif text.count("</think>") == 1:
        assert (thought, answer) == thinking.split_prediction(text)
    else:
        assert (thought, answer) == ("x", "y</think>z")


@pytest.mark.parametrize("switch", typing.get_args(data.ThinkingSwitch))
@pytest.mark.parametrize("said", ["why\n</think>\n\nso", "so", "why"])
def test_a_switch_holds_whatever_follows(switch, said):
    thought, answer = thinking.split_thinking(thinking.begun(switch) + said)
    assert bool(thought) == (switch == "on")
    assert switch != "off" or answer == said


def test_the_released_settings():
    assert len(data.THINKING_SYSTEM) == 608 and data.THINKING_SYSTEM.count("\n\n") == 3
    assert (data.THINKING_SAMPLING, data.THINKING_TOKENS) == ({"temperature": 0.6, "top_p": 0.95}, 65536)
    SamplingParams(max_new_tokens=data.THINKING_TOKENS, **data.THINKING_SAMPLING)
    assert set(data.THINKING_SAMPLING) < set(inspect.signature(SamplingParams).parameters)
    assert Limits().default_tokens < data.THINKING_TOKENS


@pytest.mark.parametrize(
    ("efforts", "asked", "made"),
    [
        (False, ("on", None), ("on", None)),
        (False, ("on", "high"), ("on", None)),
        (False, ("off", None), ("off", None)),
        (True, ("on", None), ("on", "medium")),
        (True, ("on", "low"), ("auto", "low")),
        (True, ("auto", None), ("auto", None)),
        (True, ("off", None), ("off", None)),
    ],
)
def test_families_with_efforts_think_by_effort(efforts, asked, made):
    settings = data.PromptSettings.wanted(efforts, *asked)
    assert (settings.thinking, settings.effort) == made
