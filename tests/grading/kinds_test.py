"""Choices, lists and words: what a reader takes for the same is, and what a reader tells apart never is."""

import time

import pytest

from internvl_jax.grading import is_right
from tests.grading.verdicts import misjudged

CHOICE = r"""
b ⇒ B
B ⇒ (B)
B. 12 ⇒ B
(B) 12 cm ⇒ B
B. 12 ⇏ C. 12
B. 12 ⇏ C
\text{B} ⇒ B
(B) ⇒ B
**B** ⇒ B
【B】 ⇒ B
Ｂ ⇒ B
B. ⇒ B
option B ⇒ B
Option (B) ⇒ B
选B ⇒ B
选项B ⇒ B
B选项 ⇒ B
B项 ⇒ B
\mathbf{B} ⇒ B
\mathrm{(B)} ⇒ B
\textbf{(B)} ⇒ B
\textbf{(B) }12 ⇒ B
\boxed{B} ⇒ B
$B$ ⇒ B
$\text{B}$ ⇒ B
\(B\) ⇒ B
(B) 12 ⇒ B
B) 12 ⇒ B
B: 12 ⇒ B
B：红色 ⇒ B
B、红色 ⇒ B
B.12 ⇒ B
Ｂ．红色 ⇒ B
(b) ⇒ B
b) ⇒ B
［Ｂ］ ⇒ B
（Ｂ） ⇒ B
\text{(B)} ⇒ B
\text{B.} ⇒ B
"B" ⇒ B
“B” ⇒ B
`B` ⇒ B
*B* ⇒ B
__B__ ⇒ B
<B> ⇒ B
{B} ⇒ B
B。 ⇒ B
choice B ⇒ B
Choice B: 12 ⇒ B
the option B ⇒ B
B. 12 ⇒ 12
12 ⇒ B. 12
(B) red ⇒ red
B ⇒ B. 12
B ⇒ (B) 12
{\bf B} ⇒ B
\textsf{B} ⇒ B
\boldsymbol{B} ⇒ B
答案B ⇒ B
B . ⇒ B
( B ) ⇒ B
𝐁 ⇒ B
Ⓑ ⇒ B
B, ⇒ B
\underline{B} ⇒ B
A ⇏ B
(A) ⇏ B
【A】 ⇏ B
Ａ ⇏ B
选A ⇏ B
option A ⇏ B
A. 12 ⇏ B
B. 12 ⇏ 13
A. 12 ⇏ B. 12
B. 12 ⇏ B. 13
Blue ⇏ B
12 ⇏ B
A dog ⇏ A
AB ⇏ B
B+1 ⇏ B
B-1 ⇏ B
2B ⇏ B
B^2 ⇏ B
not B ⇏ B
A or B ⇏ B
Both ⇏ B
B/2 ⇏ B
x ⇏ y
B(2) ⇏ B
A、B ⇏ B
B、C ⇏ B
-B ⇏ B
B' ⇏ B
B=2 ⇏ B
"""
LISTS = r"""
A,B ⇒ A, B
B、A ⇒ A,B
A和B ⇒ A, B
A and B ⇒ A,B
A & B ⇒ A, B
ABD ⇒ A, B, D
A、B、D ⇒ ABD
(A),(B) ⇒ A, B
A;B ⇒ A,B
A,B,and C ⇒ A, B, C
{A,B} ⇒ A,B
\{A,B\} ⇒ A, B
\text{A and B} ⇒ A, B
\text{A}, \text{B} ⇒ A,B
red, blue ⇒ blue, red
red and blue ⇒ red, blue
Red, Blue ⇒ red, blue
Tom, Jerry and Spike ⇒ Spike, Tom, Jerry
1, 2, 3 ⇒ 3,2,1
1,2,3 ⇒ \{1,2,3\}
x=1 or x=2 ⇒ 1, 2
x=1,2 ⇒ x=2,1
x=1, y=2 ⇒ y=2, x=1
(1,2),(3,4) ⇒ (3,4), (1,2)
1,000, 2,000 ⇒ 1000, 2000
100, 200 ⇒ 100,200
3 cm, 4 cm ⇒ 3, 4
1 and 2 ⇒ 1, 2
1/2, 0.25 ⇒ 0.5, 1/4
\pm 2 ⇒ 2, -2
2,-2 ⇒ \pm 2
Ａ，Ｂ ⇒ A,B
①② ⇒ ①②
x<1 or x>3 ⇒ x>3 or x<1
AC ⇒ A, C
(A, B) ⇒ (A,B)
A, B, A ⇒ A, A, B
A,B ⇏ A
A ⇏ A,B
A,B ⇏ A,C
A,B ⇏ A,B,C
AB ⇏ A
A or B ⇏ A
ABC ⇏ A,B
red, blue ⇏ red
red ⇏ red, blue
red, blue ⇏ red, green
1,2 ⇏ 1,2,3
1,1,2 ⇏ 1,2
1,2 ⇏ 1,1,2
3,3 ⇏ 3
(1,2) ⇏ (2,1)
(A,B) ⇏ (B,A)
x=1, y=2 ⇏ x=2, y=1
x=1,y=2 ⇏ 1
2,1 ⇏ x=1, y=2
1,2 ⇏ 3
1,2 ⇏ 12
1, 2 ⇏ 1,2,2
A,A ⇏ A,B
32349 ⇏ 32, 349
x<1 or x>3 ⇏ 1<x<3
1 or 2 ⇏ 1
3 or 4 ⇏ 3
A、B ⇏ A
\sqrt{67},-\sqrt{85} ⇏ \sqrt{67}
AB ⇏ CD
BD ⇏ A, B, D
[1,2) ⇏ (1,2]
"""
WORDS = r"""
Red. ⇒  red 
$\text{red}$ ⇒ red
Red ⇒ red
\text{red} ⇒ red
the red car ⇒ The red car
Yes ⇒ yes
yes. ⇒ Yes
"red" ⇒ red
No ⇒ no
New York ⇒ new york
well-known ⇒ Well-Known
red ⇏ der
red ⇏ reds
yes ⇏ no
red ⇏ blue
not red ⇏ red
increase ⇏ decrease
"""


@pytest.mark.parametrize("table", [CHOICE, LISTS, WORDS], ids=["choices", "lists", "words"])
def test_the_same_answer(table):
    assert misjudged(table, is_right) == []


def test_long_answers_are_the_same_to_the_letter():
    assert is_right("1 + " * 1000 + "x", "1 + " * 1000 + "x ")
    assert not is_right("1 + " * 1000 + "x", "1 + " * 1000 + "y")


@pytest.mark.parametrize(
    "huge",
    [
        "9^9^9^9",
        "9^{9^{9^9}}",
        "9**9**9**9",
        "10^(10^10)",
        "10^{10^{10}}",
        "(10^{10})^{10^{10}}",
        "2^{-10^{10}}",
        "1e999999999",
        "(10^9)!",
        "1000000!",
        "10!!!!!!",
        r"\binom{1000000000}{100000000}",
        "(" * 900 + "1" + ")" * 900,
        r"\frac{1}{" * 180 + "1" + "}" * 180,
        "(" * 100_000,
        "1," * 900,
        "A and " * 300,
        "$ " * 900,
        "*" * 1900,
        r"\text{" * 300,
        r"x\ " * 600,
        "1-" * 900 + "1",
        "5 " + "kg*m/s^2 " * 200,
    ],
)
def test_what_is_huge_or_deep_takes_no_time(huge):
    start = time.monotonic()
    assert not is_right(huge, "x+1") and not is_right("12", huge)
    assert is_right(huge, huge)
    assert time.monotonic() - start < 5  # a few hundredths; without bounds minutes, or the machine's memory
