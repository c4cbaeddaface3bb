r"""Formulas that say the same in another form: equations, regions, sets, general solutions, periodic decimals, i."""

import pytest

from internvl_jax.grading import get_reward, is_right
from tests.grading.verdicts import misjudged

EQUATIONS = r"""
(x+y)^2=81 ⇒ 81
x^2+\frac{1}{x^2}=7 ⇒ 7
a+b+c=0 ⇒ 0
f(1)+f(-1)=0 ⇒ 0
3+4=7 ⇒ 7
y=11a+c ⇒ 11a+c
5=x ⇒ 5
5=x_1 ⇒ 5
5=x ⇒ x=5
x^2-4=0 ⇒ x^2=4
y=2x+3 ⇒ 2x-y+3=0
x^2-4=0 ⇏ 0
x^2+1=0 ⇏ 0
2x-y+1=0 ⇏ 0
7=11a+c ⇏ 11a+c
7=x+1 ⇏ x+1
7=a ⇏ a
5=x ⇏ 6
y=2x+3 ⇏ 2x+y+3=0
"""
REGIONS = r"""
x<3 or x>5 ⇒ (-\infty,3)\cup(5,\infty)
(-\infty,3)\cup(5,\infty) ⇒ x<3 \text{ or } x>5
x<3或x>5 ⇒ (-∞,3)∪(5,+∞)
x<3 or 5<x<7 ⇒ (-\infty,3)\cup(5,7)
\{x|x<3\text{或}x>5\} ⇒ (-\infty,3)\cup(5,\infty)
\{x \mid x<3 \text{ or } x>5\} ⇒ x<3 or x>5
\{x|-1<x<3\} ⇒ (-1,3)
{x|x>2} ⇒ x>2
\{x\in\mathbb{R} \mid x>2\} ⇒ (2,\infty)
3>x\ge 2 ⇒ [2,3)
c>b>a ⇒ a<b<c
c\ge b>a ⇒ a<b\le c
∠1>∠2>∠3 ⇒ ∠3<∠2<∠1
1\text{或}2 ⇒ 1, 2
x<3 or x>5 ⇏ (-\infty,3]\cup(5,\infty)
x<3或x≥5 ⇏ (-∞,3)∪(5,+∞)
x<3 and x>5 ⇏ (-\infty,3)\cup(5,\infty)
x<3 or y>5 ⇏ (-\infty,3)\cup(5,\infty)
1<x<3 or 5<x<7 ⇏ (1,3)\cup(5,8)
x<1 or x=3 ⇏ (-\infty,1)\cup(3,\infty)
x<1 or x>a ⇏ (-\infty,1)\cup(3,\infty)
\{x|-1<x\le 3\} ⇏ (-1,3)
{x|x>2} ⇏ x<2
\{x\in\mathbb{Z} \mid x>2\} ⇏ (2,\infty)
3>x\ge 2 ⇏ (2,3)
c>b>a ⇏ a<c<b
c\ge b>a ⇏ a<b<c
a>b>c ⇏ a<b<c
2>1 ⇏ 1>2
x>3>y ⇏ x<3<y
1\text{或}2 ⇏ 1
"""
SOLUTIONS = r"""
\frac{\pi}{6}+k\pi, k\in\mathbb{Z} ⇒ k\pi+\frac{\pi}{6} (k\in\mathbb{Z})
x=\frac{\pi}{4}+k\pi, k\in Z ⇒ x=k\pi+\frac{\pi}{4} (k∈Z)
k\pi, k\in\mathbb{Z} ⇒ n\pi (n \in \mathbb{Z})
k\pi (k∈Z) ⇒ k\pi
\{x \mid x=2k, k\in\mathbb{Z}\} ⇒ \{x \mid x = 2k, k \in \mathbb{Z}\}
k\pi, k\in\mathbb{Z} ⇏ 2k\pi, k\in\mathbb{Z}
k\pi, k\in\mathbb{N} ⇏ k\pi, k\in\mathbb{Z}
x=\frac{\pi}{4}+k\pi, k\in Z ⇏ x=k\pi-\frac{\pi}{4} (k\in Z)
\frac{n\pi}{2}, n\in\mathbb{Z} ⇏ \frac{k\pi}{3}, k\in\mathbb{Z}
nk, n\in\mathbb{Z} ⇏ nk, k\in\mathbb{Z}
\{x \mid x=2k, k\in\mathbb{Z}\} ⇏ \{x \mid x=2k+1, k\in\mathbb{Z}\}
"""
NUMBERS = r"""
0.\overline{3} ⇒ 1/3
0.\overline{9} ⇒ 1
0.2\overline{7} ⇒ \frac{5}{18}
0.1\dot{6} ⇒ \frac16
0.\dot3 ⇒ \frac13
0.\dot{2}\dot{7} ⇒ \frac{3}{11}
0.\dot{1}4285\dot{7} ⇒ \frac17
-3.\bar{6} ⇒ -\frac{11}{3}
0.\overline{3}x ⇒ \frac{x}{3}
i^2 ⇒ -1
(1+i)^2 ⇒ 2i
\frac{1}{1+i} ⇒ \frac{1-i}{2}
|3-4i| ⇒ 5
e^{i\pi} ⇒ -1
\langle 3,-4\rangle ⇒ (3,-4)
\left\langle 3,-4\right\rangle ⇒ ⟨3, -4⟩
三分之二 ⇒ 2/3
十二分之五 ⇒ \frac{5}{12}
负三分之一 ⇒ -\frac13
百分之二十五 ⇒ 25%
百分之25 ⇒ 0.25
f′(1) ⇒ f'(1)
30°12′ ⇒ 30^\circ 12'
0.\overline{3} ⇏ 0.3
0.\dot{1}4285\dot{7} ⇏ \frac16
0.2\overline{7} ⇏ 0.\overline{27}
\overline{12} ⇏ 12
i^3 ⇏ i
(1+i)^2 ⇏ -2i
\frac{2}{1-i} ⇏ 1-i
|3+4i| ⇏ 7
i^2R ⇏ -R
I^2 ⇏ -1
i ⇏ 1
⟨1,2⟩ ⇏ (2,1)
\langle 1,2\rangle ⇏ 1.2
三分之二 ⇏ 3/2
千分之五 ⇏ 5%
3分之一 ⇏ 3
"""
COUNTED = r"""
There are 12 apples. ⇒ 12
There are 12 apples. ⇒ 12 apples
Therefore, there are 12 distinct sequences that meet the conditions. ⇒ 12
So there is 1 solution. ⇒ 1
Answer: there are 1,200 students. ⇒ 1200
There are 12 apples. ⇏ 12 pears
There are 12 apples and 5 pears. ⇏ 12
There are 5 red and 7 blue balls. ⇏ 5
There are 3 dozen eggs. ⇏ 3
There are 2 million people. ⇏ 2
There are 12 apples in 3 boxes. ⇏ 3
There are not 12 apples. ⇏ 12
If there are 12 apples, x is 3. ⇏ 12
The length is 12. I hope this helps! ⇒ 12
The length is 12 cm.⏎⏎Feel free to ask if you need more help. ⇒ 12
There are 12 ways. I hope it is correct. ⇒ 12
The length is 12. Let me know if you have any questions! 😊 ⇒ 12
The length is 12. I hope this helps! If you have any questions, let me know. ⇒ 12
所以面积为12平方厘米。希望对你有帮助！ ⇒ 12
长度是12。如果你有其他问题，请告诉我。 ⇒ 12
\boxed{5}. I hope this helps! ⇒ 5
Answer: Let me know ⇒ let me know
The length is 12. I hope it is 13. ⇏ 12
"""


@pytest.mark.parametrize(
    "table",
    [EQUATIONS, REGIONS, SOLUTIONS, NUMBERS],
    ids=["equations", "regions", "general solutions", "numbers"],
)
def test_the_same_formula(table):
    assert misjudged(table, is_right) == []


def test_what_is_counted_and_what_is_only_polite():
    answer = get_reward("answer")
    assert misjudged(COUNTED, lambda response, truth: answer(response, truth).accuracy) == []
