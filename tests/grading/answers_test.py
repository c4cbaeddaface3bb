"""Where final answers stand, and which are the same without mathematics."""

import pytest

from internvl_jax.grading import answers, numbers


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (r"so \boxed{5}", "5"),
        (r"\boxed{4}, no: \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{\boxed{5}}", "5"),
        (r"\boxed{\left\{ x : x > 0 \right.}", r"\left\{ x : x > 0 \right."),
        (r"\boxed{\text{a \{ b}}", r"\text{a \{ b}"),
        (r"\boxed{5", None),  # cut off
        (r"\boxed{4} and \boxed{\frac{1}", None),
        ("<think>6 * 7</think>\n42", "42"),
        (r"<think>\boxed{41}</think>The answer is \boxed{42}", "42"),
        (r"<think>\boxed{41}</think>42", "42"),
        (r"<think>it is \boxed{41}", None),  # still thinking
        ("opened by the prompt</think>42", "42"),
        ("<think>a</think>b</think>c", "c"),
        ("<think>a</think> \n", None),
        ("", None),
        ("Step 1: add.\nFinal answer: 12", "12"),
        ("**Final Answer:** 12", "12"),
        ("Final answer:\n\n12", "12"),
        ("answer: 1\nFinal answer: B. because", "B. because"),
        ("The answer is: (C)", "(C)"),
        ("So the answer is 7 cm.", "7 cm."),
        ("The answer issues from it", "The answer issues from it"),
        ("答案是：B", "B"),
        (r"Final answer: see the box \boxed{3}", "3"),
        ("twelve", "twelve"),
    ],
)
def test_the_final_answer(response, answer):
    assert answers.final_answer(response) == answer


@pytest.mark.parametrize(
    ("given", "truth", "verdict"),
    [
        ("B", "B", True),
        ("b", "B", True),
        ("(B)", "B", True),
        ("B", "(B)", True),
        ("B.", "B", True),
        ("B. 12", "B", True),
        ("(B) 12 cm", "B", True),
        ("B", "B. 12", True),
        ("option B", "B", True),
        (r"\text{B}", "B", True),
        ("**B**", "B", True),
        ("B. 12", "C. 12", None),
        ("B. 12", "C", False),
        ("AB", "B", False),
        ("Blue", "B", False),
        ("A dog", "A", False),
        ("12", "B", False),
        ("Red.", " red ", True),
        ("$\\text{red}$", "red", True),
        ("the  red\ncar", "the red car", True),
        ("blue", "red", None),
        ("1,234", "1234", True),
        ("1{,}234.50", "1234.5", True),
        ("1 234", "1234", True),
        ("1,23", "123", None),  # a comma that separates no thousands
        ("12.0", "12", True),
        (".5", "0.5", True),
        ("-5", "−5", True),
        ("1.5e3", "1500", True),
        ("2 million", "2,000,000", True),
        ("12", "13", False),
        ("0.333", "0.3333", False),
        ("50%", "50", True),
        ("50 percent", r"50\%", True),
        ("50%", "0.5", True),
        ("0.5%", "50", False),
        ("$5", "5", True),
        ("5 dollars", "$5", True),
        ("5 cm", "5", True),
        (r"5\text{ cm}", "5 centimeters", True),
        ("5 cm", "5 m", False),
        ("5 m", "500 cm", False),  # units are not converted
        (r"5\,\text{cm}^2", "5 cm²", True),
        ("5 square meters", "5 m^{2}", True),
        ("5 cm^2", "5 cm", False),
        ("60 km/h", "60 kilometers per hour", True),
        (r"30^\circ", "30 degrees", True),
        ("30°", "30", True),
        (r"25 ^\circ\text{C}", "25 °C", True),
        ("25 °C", "25 °F", False),
        ("3x", "3", None),
        ("3m", "3", None),  # three metres, or m three times
        ("3 dogs", "3", None),
        ("1234567890123456789012345678901", "1234567890123456789012345678902", False),
        ("3 or 4", "3", None),
        ("$3$ or $4$", "3", None),
    ],
)
def test_the_same_answer(given, truth, verdict):
    assert answers.verdict(answers.read(given), answers.read(truth)) is verdict


def test_a_number_is_all_there_is():
    assert numbers.read("12 apples") is None
    assert numbers.read("") is None
    assert numbers.read("cm") is None
    assert numbers.read("12 cm / s").unit == "cm/s"
