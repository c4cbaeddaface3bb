"""The answer of most responses, whatever words it is in."""

from internvl_jax.grading import Graders, votes


def vote(responses, grader="exact"):
    with Graders(grader, 10.0, 0) as graders:
        return votes(responses, graders)


def test_the_same_words_agree():
    responses = ["<think>a</think>Red", "blue", "<think>b</think>red ", "<think>red", "Blue", "BLUE"]
    assert vote(responses) == [2, 3, 2, 0, 3, 3]
    assert vote(["<think>no end"] * 3) == [0, 0, 0]
    assert vote(["one"]) == [1]


def test_values_agree_where_graders_say_so():
    responses = [r"so \boxed{0.5}", r"it is \boxed{\frac{1}{2}}", r"\boxed{2}", "The answer is 1/2."]
    assert vote(responses) == [1, 1, 1, 1]
    assert vote(responses, "answer") == [3, 3, 1, 3]


def test_a_grader_that_fails_joins_nobody():
    assert vote(["a", "b", "A "], f"{__name__}:broken") == [2, 1, 2]


def broken(response, truth):
    raise ValueError("no")
