"""Rewards by name, and mathematical equivalence beside the release's."""

import re
import sys
import threading

import pytest

from internvl_jax.errors import InputError
from internvl_jax.grading import Graders, Score, get_reward, is_right, math

# given, truth, and what mathruler 0.1.0's grade_answer says of them (recorded).
AS_RELEASED = [
    ("1/2", r"\frac{1}{2}", True),
    (r"\frac12", "0.5", True),
    ("0.5", r"\dfrac{1}{2}", True),
    ("1,234", "1234", True),
    (r"50\%", "50", True),
    ("5 cm", "5", True),
    (r"5\text{ cm}", "5", True),
    ("5 cm", "5 m", False),
    ("3 dogs", "3 cats", False),
    ("3 dogs", "3", False),
    ("sqrt(2)", r"\sqrt{2}", True),
    (r"\sqrt2", r"\sqrt{2}", True),
    (r"2\sqrt{3}", r"\sqrt{12}", True),
    (r"2\sqrt{3}", r"\sqrt{13}", False),
    ("x=5", "5", True),
    ("5", "x=5", True),
    ("(1,2)", "(1, 2)", True),
    ("(2,1)", "(1,2)", False),
    ("[1,2]", "(1,2)", False),
    ("1 or 2", "1, 2", True),
    ("x^2+2x+1", "(x+1)^2", True),
    ("x^2+2x+2", "(x+1)^2", False),
    (r"2\pi", "2pi", True),
    ("6.28", r"2\pi", False),
    ("3.14", r"\pi", False),
    (r"30^\circ", "30", True),
    ("7 3/4", "31/4", True),
    (r"7\frac{3}{4}", r"\frac{31}{4}", True),
    ("x>3", "x > 3", True),
    ("1e3", "1000", True),
    (r"\infty", "inf", True),
    (r"(-\infty,2)", r"(-\infty, 2)", True),
    (r"\text{red}", "red", True),
    ("red", "der", False),
    ("0.333", "1/3", False),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", True),
    ("a+b", "b+a", True),
    ("2x+1", "y=2x+1", True),
    (r"12 \text{ square units}", "12", True),
    ("x", "y", False),
    ("", "5", False),
    ("5", "", False),
    ("None", "12", False),
]
# What the release counts as wrong and we as right: equal values in another form, sets in another order, and a choice
# together with its text.
MORE_THAN_RELEASED = [
    ("2/4", "1/2"),
    (r"\sqrt{4}", "2"),
    ("3!", "6"),
    (r"\log_2 8", "3"),
    (r"2\times 10^3", "2000"),
    ("0.3333333", "1/3"),  # six decimals suffice
    ("2:3", "2/3"),
    (r"50\%", "0.5"),
    ("5 million", "5000000"),
    (r"5\,\text{cm}^2", "5"),
    ("30°", "30"),
    ("2π", r"2\pi"),
    ("3<x", "x>3"),
    ("y=2x+1", "y = 1+2x"),
    (r"\{1,2\}", r"\{2,1\}"),
    ("twenty-one", "21"),
    ("first", "1st"),
    ("March 2020", "2020-03"),
    ("H2O", "H_2O"),
    ("2, 1", "1, 2"),
    ("B. 12", "B"),
]
# What the release counts as right, and a reader does not. It takes away words it knows as units, whatever follows the
# last number as text, most signs and all case.
LESS_THAN_RELEASED = [
    ("5 mW", "5 MW", "a unit's case tells milli from mega"),
    ("5 cm^3", "5 cm^2", "a power belongs to its unit"),
    (r"2\pi\text{ cm}", r"2\pi\text{ m}", "two units contradict each other"),
    (r"3\text{ dogs}", r"3\text{ cats}", "so do two nouns"),
    (r"5\text{ million}", "5", "a scale is part of the number"),
    (r"3\text{ dozen}", "3", "so is a dozen"),
    (r"3\text{ or more}", "3", "more than one value"),
    (r"x\text{ is even}", "x", "a statement about the value"),
    (r"14\text{ degrees below zero}", "14", "the words are its sign"),
    ("2024-01-02", "2024-02-01", "two dates, whose differences are equal"),
    ("2019-2020", "2018-2019", "two ranges, likewise"),
    ("1.6e-19", "9.1e-31", "both are near zero, and not near each other"),
    ("1 2", "12", "two numbers"),
    ("32, 349", "32349", "two numbers"),
    ("x=1", "y=1", "two variables"),
    ("R-r", "r-R", "variables of both cases"),
]


@pytest.mark.parametrize(("given", "truth", "right"), AS_RELEASED)
def test_answers_are_compared_as_released(given, truth, right):
    assert is_right(given, truth) is right


@pytest.mark.parametrize(("given", "truth"), MORE_THAN_RELEASED)
def test_more_is_equal_than_the_release_sees(given, truth):
    assert is_right(given, truth)


@pytest.mark.parametrize(("given", "truth", "why"), LESS_THAN_RELEASED)
def test_what_a_reader_tells_apart_is_not_equal(given, truth, why):
    assert not is_right(given, truth), why
    assert not is_right(truth, given), why


def test_mathematics_needs_no_main_thread():
    found = []
    thread = threading.Thread(target=lambda: found.append(math.equal("1+x", "x+1")))
    thread.start()
    thread.join()
    assert found == [True]


@pytest.mark.parametrize(
    ("response", "truth", "accuracy", "form"),
    [
        (r"<think>a</think>\boxed{5}", "5", 1, 1),
        (r"<think>a</think>\boxed{6}", "5", 0, 1),
        (r"\boxed{5}", "5", 1, 0),
        (r" <think>a</think>\boxed{5}", "5", 1, 0),
        (r"<think>\boxed{5}</think>5", "5", 1, 0),  # as released: the box counts even in the thinking
        (r"<think>\boxed{5}", "5", 1, 0),
        (r"<think></think>\boxed{}", "5", 0, 1),
        (r"<think>a</think>\boxed{5", "5", 0, 0),
        ("<think>a\n</think>\n\nso\n\\boxed{\n5\n}\n", "5", 1, 1),
        ("<think>a</think>5", "5", 0, 0),
        ("</think><think>\\boxed{5}", "5", 1, 0),
        ("<think>", "5", 0, 0),
        ("", "5", 0, 0),
    ],
)
def test_the_released_reward(response, truth, accuracy, form):
    released = re.fullmatch(r"<think>.*</think>.*\\boxed\{.*\}.*", response, re.DOTALL)
    assert bool(released) == form
    score = get_reward("mmpr")(response, truth)
    assert score == Score(pytest.approx(0.9 * accuracy + 0.1 * form), accuracy, form)


def test_the_form_of_a_loop_takes_no_time():
    assert get_reward("mmpr")("<think>" + r"</think>\boxed{" * 100_000, "5") == Score(0.0, 0.0, 0.0)


def test_the_final_answer_alone_and_exactly():
    right, said = Score(1.0, 1.0, 1.0), "<think>6</think>The answer is: B. 12"
    assert get_reward("answer")(said, "B") == right
    assert get_reward("answer")("<think>6", "6") == Score(0.0, 0.0, 0.0)
    assert get_reward("answer")("7", "6") == Score(0.0, 0.0, 1.0)
    assert get_reward("exact")(said, "b") == Score(0.0, 0.0, 1.0)
    assert get_reward("exact")(" Yes\n", "yes") == right


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("kind", "no reward is called 'kind'; take one of mmpr, answer, exact or package.module:function"),
        (":f", "no reward is called ':f'"),
        ("no.such:f", r"reward 'no.such:f': no.such can't be imported \(.*\); is it on the Python path\?"),
        ("tests.grading.graders:f", "tests.grading.graders has no f; name one of its functions"),
        ("tests.grading.graders:not_a_function", "is no function"),
    ],
)
def test_a_wrong_name_is_one_sentence(name, problem):
    with pytest.raises(InputError, match=problem):
        get_reward(name)


def test_choices_and_exact_answers_do_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "math_verify", None)  # as if it weren't installed
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert is_right("(B) 12", "B") and is_right("1,234 cm", "1234") and not is_right("blue", "red")
    with pytest.raises(InputError, match="math-verify: pip install"):
        is_right("x + 1", "1 + x")
    with pytest.raises(InputError, match="math-verify: pip install"):
        Graders("mmpr", 1.0, 0)
    with pytest.raises(InputError, match="pebble: pip install"):
        Graders("exact", 1.0, 1)
