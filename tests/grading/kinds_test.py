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
B：12 ⇒ B
（B）12 ⇒ B
B）12 ⇒ B
B - red ⇒ B
B - 12 ⇏ B
B：12 ⇏ C
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
\text{Option B} ⇒ B
\textbf{B} ⇒ B
B (12 cm) ⇒ B
B: the rhombus ⇒ B
(B): 12 ⇒ B
(B). 12 ⇒ B
B】 ⇒ B
选项 B ⇒ B
选（B） ⇒ B
答案选B ⇒ B
B、 ⇒ B
Option B. ⇒ B
option b ⇒ B
choice (B) ⇒ B
\left(B\right) ⇒ B
\left(\text{B}\right) ⇒ B
\mathrm{B}. ⇒ B
$\mathbf{(B)}\ 12$ ⇒ B
\textbf{(B)}\ 12 ⇒ B
\textbf{B.}\ 12 ⇒ B
B~ ⇒ B
b. ⇒ B
\boxed{\text{B}} ⇒ B
𝑩 ⇒ B
[B] 12 ⇒ B
< B > ⇒ B
B is correct ⇒ B
B) ⇒ B
答案是B ⇒ B
The answer is B ⇒ B
Answer: B ⇒ B
C ⇏ B
\text{C} ⇏ B
（A） ⇏ B
选C ⇏ B
B and C ⇏ B
B or C ⇏ B
(B) or (C) ⇏ B
(B) and (C) ⇏ B
B, C ⇏ B
B is wrong ⇏ B
B is incorrect ⇏ B
not (B) ⇏ B
neither ⇏ B
none ⇏ B
B or not ⇏ B
B+C ⇏ B
BC ⇏ B
b^2 ⇏ B
A. B ⇏ B
A: B ⇏ B
A) B ⇏ B
(A) B ⇏ B
B ⇏ E
I ⇏ B
option ⇏ B
Option C ⇏ B
choice A ⇏ B
8 ⇏ B
β ⇏ B
ß ⇏ B
13 ⇏ B
《B》 ⇒ B
〈A〉 ⇏ B
"""
LISTS = r"""
[A, B] ⇒ A, B
["A", "B"] ⇒ A, B
[blue, red] ⇒ red, blue
[A, C] ⇏ A, B
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
9.8\,\text{m}/\text{s}^2 ⇒ 9.8
20\,\Omega ⇒ 20 ohm
[3,5] ⇒ [3, 5]
A, C ⇒ AC
A、C ⇒ A,C
A and C ⇒ AC
ACD ⇒ A、C、D
A;C ⇒ AC
A C ⇒ A, C
A,C. ⇒ A, C
(A) and (C) ⇒ A, C
A和C ⇒ AC
A、C、D ⇒ D、C、A
**A, C** ⇒ A,C
\text{A, C} ⇒ A, C
\text{A},\text{C} ⇒ A,C
dog, cat ⇒ cat and dog
①③ ⇒ ①、③
①,③ ⇒ ①③
甲、乙 ⇒ 乙、甲
甲和乙 ⇒ 甲、乙
red; blue ⇒ red, blue
1; 2 ⇒ 1, 2
1 和 2 ⇒ 1, 2
1或2 ⇒ 1 or 2
x_1=1, x_2=2 ⇒ 1, 2
x_1=2,x_2=1 ⇒ 1,2
x = 1 or 2 ⇒ 1, 2
$x=1$ or $x=2$ ⇒ x=1, x=2
a=1, b=2 ⇒ b=2,a=1
\{a, b\} ⇒ \{b, a\}
{1, 2} ⇒ 1,2
1, 2 and 3 ⇒ 1,2,3
$1$, $2$, and $3$ ⇒ 1,2,3
$(1,2)$ and $(3,4)$ ⇒ (3,4),(1,2)
28\,\% ⇒ 28%
(-\infty, 2] ⇒ (-∞,2]
x\in(1,2) ⇒ 1<x<2
1<x<2 ⇒ (1,2)
x \ge 2 ⇒ [2,\infty)
A, B ⇏ AC
A,B ⇏ B,C
A, B, C ⇏ A, B
A ⇏ A and B
B ⇏ A,B
red and blue ⇏ red or green
red, red ⇏ red
cat ⇏ cat, dog
1,2,3 ⇏ 1,2
1,2 ⇏ 1,3
1 and 2 ⇏ 12
1,2 ⇏ 2,2
1,1 ⇏ 1
(1,2) ⇏ (1,3)
(1,2,3) ⇏ (1,2)
(1,2),(3,4) ⇏ (2,1),(3,4)
(1,2),(3,4) ⇏ (1,2)
(1,2) ⇏ \{1,2\}
[1,2] ⇏ \{1,2\}
(1,2) ⇏ 3
1,000 ⇏ 1
1;2 ⇏ 1.2
x=1, x=2 ⇏ x=1
a=1, b=2 ⇏ a=2, b=1
1 or 2 ⇏ 1 and 3
①② ⇏ ①③
① ⇏ ①②
甲、乙 ⇏ 甲
甲 ⇏ 乙
A and B ⇏ C and D
x>1 and x<3 ⇏ x>1 or x<3
x<3 or x>5 ⇏ x<5 or x>3
12 (in thousands) ⇏ 12
(0,1) ⇏ [0,1]
\lfloor 2.5\rfloor ⇏ 2.5
1.2 ⇏ 1,2
(A)(C) ⇒ AC
A C D ⇒ ACD
(A), (C) ⇒ AC
x=\pm3 ⇒ 3, -3
A C D ⇏ ACE
CA ⇏ A, C
BAD ⇏ A, B, D
(A)(C) ⇏ AD
x=\pm3 ⇏ 3
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
a circle ⇒ circle
the circle ⇒ a circle
five ⇒ 5
5 ⇒ Five
五 ⇒ 5
a circle ⇏ square
five ⇏ 6
twelve ⇏ 20
second ⇏ 2
banana split ⇏ bananasplit
twenty-one ⇒ 21
Twenty one ⇒ 21
thirteen ⇒ 13
ninety ⇒ 90
a hundred ⇒ 100
二十一 ⇒ 21
十四 ⇒ 14
九十 ⇒ 90
fifteen ⇏ 50
twenty-one ⇏ 22
twenty-ten ⇏ 30
十四 ⇏ 40
1st ⇒ first
Second ⇒ 2nd
1st ⇏ 1
1st ⇏ second
(A) red (B) blue ⇏ A
A) red B) blue ⇏ A
A. red B. blue ⇏ A
(B) Vitamin C. ⇒ B
D. Both A and B ⇒ D
2nd ⇏ 2
H2O ⇒ H_2O
CO_2 ⇒ CO2
Ca(OH)2 ⇒ Ca(OH)_{2}
CO2 ⇏ CO_3
C2H6 ⇏ C_6H_2
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
    start = time.process_time()
    assert not is_right(huge, "x+1") and not is_right("12", huge)
    assert is_right(huge, huge)
    assert time.process_time() - start < 5  # a few hundredths; without bounds minutes, or the machine's memory
