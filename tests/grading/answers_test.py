"""Where final answers stand."""

import time

import pytest

from internvl_jax.grading import answers, get_reward
from tests.grading.verdicts import misjudged

MARKED = r"""
The answer to part (a) is 5. ⇒ 5
Thus the final answer is $x = 5$, $y = 6$. ⇒ x=5, y=6
So, the correct answer is **(C) 15 cm²**. ⇒ C
Final answer: $\frac{1}{2}$⏎⏎(approximately 0.5) ⇒ 1/2
The answer is therefore 5. ⇒ 5
The answer, then, is B. ⇒ B
I would choose B. ⇒ B
B is the correct answer. ⇒ B
Hence, option (B) is correct. ⇒ B
Answer: The correct option is B. ⇒ B
Answer: 12 cm (rounded) ⇒ 12
Answer: it is 12. ⇒ 12
Answer:⏎```⏎12⏎``` ⇒ 12
Answer: 12⏎--- ⇒ 12
Answer:⏎- 12 ⇒ 12
Answer: $5$, $6$ ⇒ 5, 6
The answer is about 12. ⇒ 12
<answer>The answer is B</answer> ⇒ B
Let me check the answer: 14 is right. ⇏ 14 is right
The answer is C. The area is 5. ⇒ C
The answer is C. The area is 5. ⇏ 5
Hence, option (A) is correct. ⇏ B
Option B is not correct. ⇏ B
Neither A nor B is correct. ⇏ B
A is right and B is correct. ⇏ B
The length is not 5. ⇏ 5
The final answer is \boxed{5}. Therefore the answer is right. ⇒ 5
\boxed{5} is a step. The final answer is 6. ⇒ 6
\boxed{5} is our final answer. ⇒ 5
\boxed{5}. The final answer is in the box. ⇒ 5
The answer is do not enter. ⇒ do not enter
Answer: **B** ⇒ B
Answer: *B* ⇒ B
Answer: __B__ ⇒ B
Answer: `B` ⇒ B
Answer: "B" ⇒ B
Answer: “B” ⇒ B
Answer: 'B' ⇒ B
**Answer: B** ⇒ B
**Answer:** B ⇒ B
**Answer**: B ⇒ B
**Answer:**B ⇒ B
__Answer__: B ⇒ B
*Answer*: B ⇒ B
# Answer⏎B ⇒ B
### Final Answer⏎⏎12 ⇒ 12
### Final Answer: 12 ⇒ 12
## Answer:⏎**B** ⇒ B
**Final Answer**⏎⏎$12$ ⇒ 12
**Final Answer**⏎⏎\[⏎12⏎\] ⇒ 12
Final Answer⏎12 cm ⇒ 12
<answer>B</answer> ⇒ B
<answer> 12 </answer> ⇒ 12
<think>x</think><answer>B</answer> ⇒ B
<answer>A</answer> no <answer>B</answer> ⇒ B
The answer is "B". ⇒ B
The answer is **12**. ⇒ 12
The answer is **12 cm**. ⇒ 12
The answer is **12** cm. ⇒ 12 cm
The final answer is: $\frac{1}{2}$. ⇒ 0.5
the answer is $12$. ⇒ 12
The answer is $12$ because $3\cdot4=12$. ⇒ 12
The answer is \(12\). ⇒ 12
The answer is \[12\] ⇒ 12
The answer is⏎⏎12 ⇒ 12
Answer: (B) ⇒ B
Answer: B) 12 ⇒ B
Answer: B. 12 ⇒ B
Answer: B. Red ⇒ Red
Answer = 12 ⇒ 12
ANSWER: B ⇒ B
Answer：B ⇒ B
So the answer is B, because it is red. ⇒ B
The answer is B since A is wrong. ⇒ B
The answer is 12. I hope it is correct. ⇒ 12
The correct option is B. ⇒ B
The correct answer is option B. ⇒ B
The correct choice is (B). ⇒ B
The right answer is B ⇒ B
The best answer is B ⇒ B
The answer to the question is 12. ⇒ 12
The answer would be 12. ⇒ 12
The answer should be B. ⇒ B
The answers are 1 and 2. ⇒ 1, 2
The answer choice is B ⇒ B
- **Answer:** 12 ⇒ 12
> **Answer:** 12 ⇒ 12
Final answer: The length is 12 cm. ⇒ 12
Therefore, the length is $12$. ⇒ 12
Thus $x=5$ is our answer. ⇒ 5
#### 12 ⇒ 12
Step 1⏎#### 1,234 ⇒ 1234
Answer: 12⏎⏎Note that it is large. ⇒ 12
The answer is 3.5 cm. So it is. ⇒ 3.5
The answer is Dr. Smith. ⇒ Dr. Smith
The answer is St. Louis. ⇒ St. Louis
The answer is No. ⇒ No
The answer is yes, because it is. ⇒ yes
Answer: **(B) 12** ⇒ B
**B** ⇒ B
Answer: $\boxed{12}$ ⇒ 12
My answer is B. ⇒ B
The answer is: **B**⏎⏎Explanation: A is wrong. ⇒ B
Answer: $\text{B}$ ⇒ B
Answer: \text{(B)} ⇒ B
The answer is $x=5$ ⇒ 5
Answer:  ⏎12 ⇒ 12
Answer: <B> ⇒ B
Answer: [[B]] ⇒ B
Answer: B<br>A is wrong ⇒ B
Answer: <span class="value">12</span> ⇒ 12
Final Answer⏎---⏎12 ⇒ 12
Final answer: \tfrac{1}{2} +\! \frac1{72} ⇒ \frac{1}{2}+\frac{1}{72}
The answer is 5.<|im_end|> ⇒ 5
The answer is B.</s> ⇒ B
So the length is 5. <|im_start|>user⏎Is it 6? ⇒ 5
The answer is not 12 but 13. ⇒ 13
The answer is not 12 but 13. ⇏ 12
Answer: B - red ⇒ B
Answer: Yes, it is. ⇒ yes
Answer: No, it is not. ⇏ yes
It is B. ⇒ B
I would go with B. ⇒ B
It is not B. ⇏ B
"Final answer": 12 ⇒ 12
Final answer: -5 ⇒ -5
Answer - 12 ⇒ 12
Answer – B ⇒ B
Answer — B ⇒ B
The answer is **B** (12 cm). ⇒ B
The answer is **B**: the rhombus. ⇒ B
The answer is $5$ or $6$. ⇒ 5, 6
Answer: 2019-2020 ⇒ 2019-2020
The answer is 3:30 p.m. ⇒ 15:30
The answer is 12! ⇒ 12!
The answer is $5!$. ⇒ 120
Answer: **A** ⇏ B
**Answer:** A ⇏ B
The answer is **12** cm. ⇏ 12 m
### Final Answer⏎13 ⇏ 12
<answer>A</answer> ⇏ B
The answer is A because B is wrong. ⇏ B
Answer: A⏎B ⇏ B
The answer is not B. ⇏ B
The answer isn't B ⇏ B
Is the answer B? No idea ⇏ B
It's not $5$. ⇏ 5
The answer is $5$ or $6$. ⇏ 5
Answer:  ⇏ B
The answer is B or C ⇏ B
Both A and B ⇏ B
A wrong answer is B ⇏ B
The answer cannot be B. ⇏ B
The answer is 12.5 ⇏ 12
Answer: 1,2 ⇏ 2
The answer is -5 ⇏ 5
I think ⇏ B
The answer ⇏ B
Answer-B ⇒ B
Answer -B ⇒ B
Answer–B ⇒ B
answer B ⇒ B
Answer → B ⇒ B
Ans: B ⇒ B
Final result: 12 ⇒ 12
The solution is 12. ⇒ 12
The correct answer: B ⇒ B
Correct answer: B ⇒ B
Correct Answer: B ⇒ B
Final Answer (B) ⇒ B
The answer is [B]. ⇒ B
The answer is <b>B</b>. ⇒ B
<b>Answer:</b> B ⇒ B
Answer: <b>B</b> ⇒ B
Answer: <u>12</u> ⇒ 12
Answer: ***B*** ⇒ B
***Answer: B*** ⇒ B
Answer: ~~A~~ B ⇒ B
Answer: B ✓ ⇒ B
Answer: B⏎⏎**Explanation**: the answer is B because A is wrong. ⇒ B
The answer is **B**, not A. ⇒ B
The answer is B, not A. ⇒ B
The answer is B rather than A. ⇒ B
The answer is B (not A). ⇒ B
The answer is **$12$** ⇒ 12
The answer is $\mathbf{12}$ ⇒ 12
The answer is: 12, ⇒ 12
The answer is: 12; ⇒ 12
The answer: **12 cm²** ⇒ 12
So the final answer is "12". ⇒ 12
Therefore, the answer is:⏎⏎**B** ⇒ B
Answer: B、C ⇒ B, C
Answer: B and C ⇒ B, C
The answer is A, B. ⇒ A, B
The answer is 1,234. ⇒ 1234
The answer is $1{,}234$. ⇒ 1234
Answer: 12 and 13 ⇒ 12, 13
Answer: (1, 2) ⇒ (1,2)
Answer: [1, 2) ⇒ [1,2)
Answer: x > 3 ⇒ x>3
Answer: -3 ⇒ -3
Answer: −3 ⇒ -3
Answer: 3/4 ⇒ 0.75
Answer: 2:3 ⇒ 2:3
Answer: 3.5 ⇒ 3.5
Answer: 3.5. ⇒ 3.5
Answer: No ⇒ No
Answer: not enough information ⇒ not enough information
The answer is not enough information. ⇒ not enough information
The answer is A, not B. ⇏ B
The answer is A (not B). ⇏ B
The answer is A rather than B. ⇏ B
Answer: A⏎⏎**Explanation**: B is wrong. ⇏ B
The answer is unlikely to be B ⇏ B
Answer: ~~B~~ A ⇏ B
So the answer could be A or B. ⇏ B
The answer is A or B ⇏ B
The answer is -12 ⇏ 12
The answer is 12% ⇏ 12 cm
Answer: 1/2 ⇏ 2
Answer: B1 ⇏ B
The answer is between 3 and 5 ⇏ 5
The answer is more than 5 ⇏ 5
The answer is at least 5 ⇏ 5
The answer is less than $5$ ⇏ 5
The perimeter is 14 because AB is 13. ⇒ 14
The perimeter is 14 because AB is 13. ⇏ 13
The perimeter is 14 when AB is 13. ⇒ 14
The perimeter is 14 when AB is 13. ⇏ 13
The perimeter is 14 if AB is 13. ⇏ 13
If AB is 13, the perimeter is 14. ⇒ 14
So because AB is 13, the perimeter is 14. ⇒ 14
Since AB is 13, the perimeter is 14. ⇏ 13
Thus the perimeter is 14 cm, not 13 cm. ⇒ 14
Thus the perimeter is 14 cm, not 13 cm. ⇏ 13
The answer is 5 when x is 2. ⇏ 2
The answer is 14 since AB is 13. ⇏ 13
Option C is correct because A is wrong. ⇒ C
Option C is correct because A is wrong. ⇏ A
The answer is not C, it is D. ⇒ D
The answer is not C, it is D. ⇏ C
The answer is not 12, it's 13. ⇒ 13
The correct options are A and C. ⇒ A, C
The correct options are A and C. ⇏ A
The correct answers are (A) and (C). ⇒ AC
The correct choices are B, D. ⇒ BD
C. Because it is 14. ⇒ C
C. Because it is 14. ⇏ 14
(C)⏎⏎Explanation: A is 13. ⇒ C
C⏎⏎Because it is 14. ⇏ B
<h2>Answer</h2>⏎14 ⇒ 14
<h3>Final answer: 14</h3> ⇒ 14
The answer is negative 14. ⇒ -14
The answer is minus 14. ⇏ 14
The answer is a circle. ⇒ circle
The answer is 14 and the width is 2. ⇒ 14
The answer is 14 and the width is 2. ⇏ 2
The answer is 14; the width is 2. ⇒ 14
The answer is 14, the width is 2. ⇏ 2
The answer is 1,234 and the width is 2. ⇒ 1234
The answer is C, as the width is 2. ⇒ C
The answer is C, as the width is 2. ⇏ 2
The answer is C, which is 14. ⇒ C
The answer is A, C are both correct. ⇏ A
The answer is A, B and the last one is C. ⇏ A
The answer is 14, and 15 is also possible. ⇏ 14
The answer is 14, or it is 15. ⇏ 14
The answer is 14 and a half. ⇏ 14
Answer: the width is 2 and the length is 7 ⇏ 7
The area is 14, and the perimeter is 18. ⇏ 18
The area is 14 as the width is 2. ⇏ 2
The value of x when y is 2 is 7. ⇏ 2
The value of $x$ when $y=2$ is 7. ⇒ 7
The number of 3-digit numbers where the digits are distinct is 648. ⇒ 648
If x is 2 and y is 3, the sum is 5. ⇒ 5
x is 2 and y is 3, so the sum is 5. ⇒ 5
I choose B because A is wrong. ⇒ B
The answer is definitely C. ⇒ C
The answer is actually 14, not 13. ⇒ 14
The area is 14, the width is 2. ⇏ 2
The area is 14, the width is 2. ⇏ 14
The area is 1,234 ⇒ 1234
Answer: Yes, there are 5. ⇒ yes
Answer: Yes, there are 5. ⇏ 5
Answer: No, it is 5. ⇏ 5
Final Answer: Jane started growing Sphere 3 hours ago ⇒ 3 hours ago
Final Answer: Jane started growing Sphere 3 hours ago ⇏ 4 hours ago
Final Answer: Jane started growing Sphere 3 hours ago ⇒ 3
Final Answer: Jane started growing Sphere 3 hours ago ⇏ 4
Final Answer: Jane started growing Sphere 3 hours ago ⇏ 3 hours
Final Answer: Jane grew 2 spheres 3 hours ago ⇏ 3
Final Answer: Jane grew 2 spheres 3 hours ago ⇏ 2
3 hours ago ⇒ 3
3 ago ⇏ 3
Final Answer: Jane left 13 hours ago ⇏ 3 hours ago
Final Answer: Jane left 13 hours ago ⇏ 3
Final Answer: Jane left 2 hours ago and Tom 3 hours ago ⇏ 3 hours ago
Final Answer: Jane did not leave 3 hours ago ⇏ 3 hours ago
**Final Answer:** The car is red. ⇒ red
The car is red. ⇒ red
The car was a red one. ⇒ red one
**Final Answer:** The car is red. ⇏ blue
Final answer: The car is not red. ⇏ red
Final answer: No car is red. ⇏ red
Final answer: Nobody is red. ⇏ red
Final answer: She left at least 2 days ago ⇏ 2 days ago
Final answer: She left before 2 days ago ⇏ 2 days ago
Final answer: She left at most 2 days ago ⇏ 2 days ago
Final answer: She left over 2 days ago ⇏ 2 days ago
Final answer: She left under 2 days ago ⇏ 2 days ago
Final answer: She left after 2 days ago ⇏ 2 days ago
Final answer: She left nearly 2 days ago ⇏ 2 days ago
Final answer: She left almost 2 days ago ⇏ 2 days ago
Final answer: She left within 2 days ago ⇏ 2 days ago
The answer is (B) 14 and (C) 15. ⇏ B
Final answer: The car isn't red. ⇏ red
Final answer: The car is blue or red. ⇏ red
Final answer: The left car is blue, the right one is red. ⇏ red
Final answer: If the car is red ⇏ red
Final answer: The wrong colour is red. ⇏ red
Final answer: The hypotenuse is C ⇏ C
The answer is 5'. The car is red. ⇏ red
The answer is 5. If the answer is 6, it is odd. ⇒ 5
Let us check whether the answer is 5 ⇏ 5
We need to see if the total is 5. ⇏ 5
Final answer: I doubt the car is red ⇏ red
Final answer: The car cannot be called red, what is red ⇏ red
Final answer: Few cars are red ⇏ red
The area is 14 although the width is 2. ⇒ 14
The area is 14 although the width is 2. ⇏ 2
Although the width is 2, the area is 14. ⇒ 14
Although the width is 2, the area is 14. ⇏ 2
The red one is 3 whereas the blue one is 4. ⇏ 4
"""
LAST = r"""
The answer is A. No, the answer is B. ⇒ B
The answer is not 13. The answer is 12. ⇒ 12
The answer is 12. The answer is not 13. ⇒ 12
Final Answer: The final answer is (B). ⇒ B
Answer: A⏎Answer: B ⇒ B
The answer is A... wait, the correct answer is B. ⇒ B
Answer: A. Final answer: B ⇒ B
**Answer:** A⏎⏎**Final Answer:** B ⇒ B
The answer is B. No other answer is possible. ⇒ B
答案是A。不对，答案是B。 ⇒ B
The answer is 12. Any other answer is wrong. ⇒ 12
The answer is B. A common wrong answer is A. ⇒ B
First I thought the answer is A, but the answer is B ⇒ B
The answer is A. No, that is a rhombus; the answer is B. ⇏ A
The answer is B. No, the answer is A. ⇏ B
Answer: B⏎Answer: A ⇏ B
The answer is 12. The answer is 13. ⇏ 12
答案是B。不对，答案是A。 ⇏ B
"""
CHINESE = r"""
答案：（1）5；（2）6 ⇏ 5
因此，正确答案是 **B. 12**。 ⇒ B
所以，这个图形的面积是12平方厘米。 ⇒ 12
面积不是12。 ⇏ 12
综上所述，选择 C。 ⇒ C
故本题答案为C. ⇒ C
答案：B ⇒ B
答案: B ⇒ B
答案：**B** ⇒ B
**答案：B** ⇒ B
答案为B ⇒ B
答案为：B ⇒ B
答案是：B。 ⇒ B
答案是B ⇒ B
答案选B ⇒ B
答案应为12 ⇒ 12
故选B ⇒ B
故选：B ⇒ B
故选B。 ⇒ B
所以选B ⇒ B
因此选择B ⇒ B
选B ⇒ B
本题选（B） ⇒ B
应选B ⇒ B
正确答案是B ⇒ B
正确答案：B ⇒ B
正确选项是B ⇒ B
正确选项为：B ⇒ B
故答案为：12 ⇒ 12
答案：Ｂ ⇒ B
答案：【B】 ⇒ B
答案：12厘米 ⇒ 12
答案：１２ ⇒ 12
最终答案：12 ⇒ 12
答：12个 ⇒ 12
答案是B，因为它是红色 ⇒ B
答案：B、12 ⇒ B
答案：A、B ⇒ A, B
故选ABD ⇒ A, B, D
答案：$12$ ⇒ 12
答案是12。 ⇒ 12
答案：⏎12 ⇒ 12
【答案】B ⇒ B
【答案】：B ⇒ B
选项B ⇒ B
综上，答案为 **B**。 ⇒ B
故选：\text{B} ⇒ B
参考答案：B ⇒ B
因此答案是\(12\)。 ⇒ 12
答案：A ⇏ B
故选A ⇏ B
不选B ⇏ B
选项B错误，故选A ⇏ B
答案不是B ⇏ B
答案即为B ⇒ B
答案是12，不是13 ⇒ 12
答案不是13，而是12 ⇒ 12
答案不是13，而是12 ⇏ 13
不能选B，应选A ⇏ B
答案：Ａ ⇏ B
答案：A、B ⇏ B
故选AB ⇏ B
答案为12 ⇏ 13
选 B ⇒ B
故选:B ⇒ B
答案选择B ⇒ B
答案 B ⇒ B
答案：选B ⇒ B
选择 B 选项 ⇒ B
正确的是B ⇒ B
应该选B ⇒ B
我选B ⇒ B
故选择B ⇒ B
答案：BC ⇒ B, C
答案为【B】 ⇒ B
答案为「B」 ⇒ B
答案是“B” ⇒ B
答案：B选项 ⇒ B
答案： B ⇒ B
答案：⏎⏎B ⇒ B
**答案**：B ⇒ B
## 答案⏎B ⇒ B
### 最终答案⏎⏎12 ⇒ 12
最终答案是 $12$。 ⇒ 12
答案是：12 厘米 ⇒ 12
所以答案是 12。 ⇒ 12
答案：x=12 ⇒ 12
答案为$\frac{1}{2}$ ⇒ 0.5
综上，选B ⇒ B
因此选项B正确 ⇒ B
选项B是正确的 ⇒ B
答案：是 ⇒ 是
答案：对 ⇒ 对
答案：12cm² ⇒ 12
选项B错误 ⇏ B
因此选项B不正确 ⇏ B
B不正确 ⇏ B
不是B ⇏ B
答案不可能是B ⇏ B
答案是A还是B ⇏ B
正确的选项是C。 ⇒ C
故选C，不选D。 ⇒ C
故选C，不选D。 ⇏ D
答案不是C，是D。 ⇒ D
答案不是C，是D。 ⇏ C
周长是14，因为AB是13。 ⇒ 14
周长是14，因为AB是13。 ⇏ 13
答案是14，宽是2。 ⇒ 14
答案是14，宽是2。 ⇏ 2
当宽为2时，面积为14。 ⇒ 14
面积是14，宽是2 ⇏ 2
面积是14，宽是2 ⇏ 14
宽是2，长是7，所以面积是14 ⇒ 14
答案：面积是14，宽是2 ⇏ 2
面积等于14，宽等于2。 ⇏ 2
答案：面积等于14，宽等于2 ⇏ 2
面积是14、宽是2 ⇏ 2
面积是14和宽是2 ⇏ 2
宽等于2，长等于7，所以面积等于14 ⇒ 14
图中有5只鸟 ⇒ 5
图中有5只鸟 ⇏ 6
图中没有5只鸟 ⇏ 5
图中最多有5只鸟 ⇏ 5
图中至少有5只鸟 ⇏ 5
图中有5只鸟和3只猫 ⇏ 3
图中有5只鸟，有3只猫 ⇏ 3
答案是二十一 ⇒ 21
"""
# Boxes side by side are one list: who says two values has not said the last of them, though the release takes that.
BOX = r"""
\boxed{\ 12\ } ⇒ 12
\boxed{x+1\ } ⇒ x+1
\boxed{12\,} ⇒ 12
\boxed{12.} ⇒ 12
\boxed{12\\} ⇒ 12
\boxed{12\} ⇒ 12
\boxed {12} ⇒ 12
\boxed{ 12 } ⇒ 12
\boxed{\;12\;} ⇒ 12
\boxed{12~} ⇒ 12
\boxed{12\quad} ⇒ 12
\boxed{$12$} ⇒ 12
\boxed{\boxed{12}} ⇒ 12
\boxed{\{1,2\}} ⇒ 1,2
\boxed{\left\{1,2\right\}} ⇒ \{1,2\}
\boxed{\displaystyle 12} ⇒ 12
\boxed{1}, \boxed{2} ⇒ 1,2
\boxed{1} and \boxed{2} ⇒ 1, 2
\boxed{12}, so \boxed{12} ⇒ 12
\boxed{4}. No: \boxed{5} ⇒ 5
\boxed{12\!} ⇒ 12
\boxed{\textbf{12}} ⇒ 12
\boxed{12 \ \text{cm}} ⇒ 12
\boxed{12;} ⇒ 12
\boxed{\$12} ⇒ 12
\boxed{12\%} ⇒ 12%
\boxed{x^{2}\ } ⇒ x^2
\boxed{12\:} ⇒ 12
\boxed{12 ⇏ 12
\boxed{} ⇏ 12
\boxed{\ } ⇏ 12
\boxed{1} and \boxed{2} ⇏ 2
\boxed{4}. No: \boxed{5} ⇏ 4
\boxed{\frac{1}{2} ⇏ 1/2
\boxed{12 \\ } ⇒ 12
\boxed{12\hspace{1em}} ⇒ 12
\boxed{12{}} ⇒ 12
\boxed{12\text{.}} ⇒ 12
\boxed{{12}} ⇒ 12
\boxed{\large 12} ⇒ 12
\boxed{12\newline} ⇒ 12
\boxed{\,12\,} ⇒ 12
\boxed{12\; \text{cm}\;} ⇒ 12
\boxed{\ \text{B}\ } ⇒ B
\boxed{x+1\,} ⇒ x+1
\boxed{x+1\quad} ⇒ 1+x
\boxed{x + 1 \;} ⇒ x+1
\boxed{B\ } ⇒ B
\boxed{\text{B}\,} ⇒ B
\boxed{\tfrac{1}{2}\ } ⇒ 0.5
\boxed{12\ .} ⇒ 12
\boxed{12 \ \ } ⇒ 12
\boxed{28 pct} ⇒ 28\%
\boxed{28 percent} ⇒ 28\%
\boxed{28 percentage} ⇒ 28\%
\boxed{\frac{1}{3} \textbf{meters}} ⇒ 1/3
\boxed{12\ (\text{cm})} ⇒ 12
\boxed{\sqrt{2}\ \mathrm{cm}} ⇒ \sqrt{2}
\boxed{90^\circ} ⇒ 90
\boxed{90^{\circ}} ⇒ 90
\boxed{\$18.90} ⇒ 18.90
\boxed{45\,\text{m}^2} ⇒ 45
\boxed{12\,cm} ⇒ 12
\boxed{12\;cm^2} ⇒ 12
\boxed{\text{12 cm}} ⇒ 12
\boxed{\text{12}} ⇒ 12
\boxed{\text{Yes}} ⇒ yes
\boxed{\text{The answer is B}} ⇒ B
\boxed{A \& B} ⇒ A, B
\boxed{\text{both A and B}} ⇒ A, B
\boxed{10^8 \times 3} ⇒ 3e8
\boxed{2.5\times10^{-3}} ⇒ \frac{1}{400}
\boxed{3e-8} ⇒ \frac{3}{10^8}
\boxed{1E3} ⇒ 1000
\boxed{1e+3} ⇒ 1000
\boxed{25 C} ⇒ 25 °C
\boxed{1990's} ⇒ 1990s
\boxed{\text{1990s}} ⇒ 1990s
\boxed{2\cdot 3\cdot 10^8} ⇒ 6e8
\boxed{3e-8} ⇏ \frac{4}{10^8}
\boxed{2e3} ⇏ 2e^3
\boxed{25 C} ⇏ 25 °F
\boxed{1990's} ⇏ 1990
\boxed{\text{12 or 13}} ⇏ 12
\boxed{5 ft 3 in} ⇏ 5 ft
\boxed{\text{B or C}} ⇏ B
\boxed{\color{red}14} ⇒ 14
\boxed{\textcolor{red}{C}} ⇒ C
\boxed{\textsc{C}} ⇒ C
\boxed{\bf C} ⇒ C
\boxed{\text{about }14} ⇒ 14
\boxed{\quad14} ⇒ 14
\boxed{\bf C} ⇏ B
\boxed{\color{red}14} ⇏ 13
"""


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


@pytest.mark.parametrize("table", [MARKED, LAST, CHINESE], ids=["marked", "last", "chinese"])
def test_what_states_an_answer(table):
    grade = get_reward("answer")
    assert misjudged(table, lambda response, truth: grade(response, truth).accuracy) == []


def test_what_is_in_the_box():
    grade = get_reward("mmpr")
    assert misjudged(BOX, lambda response, truth: grade(f"<think>a</think>{response}", truth).accuracy) == []


@pytest.mark.parametrize(
    "loop",
    [
        "answer ",
        "the answer is ",
        "answer to ",
        "Answer: **",
        r"\boxed{",
        r"\boxed{1}, ",
        "<answer>",
        "选",
        "$",
        "Dr. ",
        "is 5 ",
        r"\(",
        "~~",
        "answer is 5, ",
        "Answer: 1,111",
        "x is 5 when ",
        "It is 5 and ",
        "是5和",
    ],
)
def test_loops_take_no_time(loop):
    start = time.process_time()
    answers.final_answer(loop * 20_000)
    assert time.process_time() - start < 5  # tenths; with the square of the length it would be minutes
