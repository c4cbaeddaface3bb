"""Numbers, powers, units, and nouns behind a value."""

import pytest

from internvl_jax.grading import get_reward, is_right, quantities
from tests.grading.verdicts import misjudged

NUMBER = r"""
\frac{1}{10^{7}} ⇏ \frac{1}{10^{9}}
\frac{1}{2} ⇒ 50\%
\frac{1}{2}\% ⇏ 50
1,234 ⇒ 1234
1{,}234.50 ⇒ 1234.5
1 234 ⇒ 1234
1,23 ⇏ 123
12.0 ⇒ 12
.5 ⇒ 0.5
-5 ⇒ −5
1.5e3 ⇒ 1500
2 million ⇒ 2,000,000
0.333 ⇏ 0.3333
50% ⇒ 50
50 percent ⇒ 50\%
50% ⇒ 0.5
0.5% ⇏ 50
5 dollars ⇒ $5
5 cm ⇒ 5
5\text{ cm} ⇒ 5 centimeters
5 m ⇏ 500 cm
5\,\text{cm}^2 ⇒ 5 cm²
5 square meters ⇒ 5 m^{2}
5 cm^2 ⇏ 5 cm
30^\circ ⇒ 30 degrees
30° ⇒ 30
25 ^\circ\text{C} ⇒ 25 °C
25 °C ⇏ 25 °F
3x ⇏ 3
3m ⇏ 3
3 dogs ⇏ 3
1234567890123456789012345678901 ⇏ 1234567890123456789012345678902
$3$ or $4$ ⇏ 3
3e8 ⇒ 3\times 10^8
3×10^8 ⇒ 3e8
3*10^8 ⇒ 300000000
3\cdot10^{8} ⇒ 3E8
1.6\times10^{-19} ⇒ 1.6e-19
６ ⇒ 6
１２．５ ⇒ 12.5
1,234,567 ⇒ 1234567
1\,234 ⇒ 1234
12. ⇒ 12
+5 ⇒ 5
−5 ⇒ -5
½ ⇒ 0.5
2½ ⇒ 2.5
-0 ⇒ 0
007 ⇒ 7
1/3 ⇒ 0.3333333
9e0 ⇒ 9
\frac{9}{3} ⇒ 3
4e2 ⇒ 400
5e-1 ⇒ \frac{1}{2}
\sqrt{16} ⇒ 4
0.5 ⇒ ½
1e0 ⇒ \log_2 2
6.02\times10^{23} ⇒ 6.02e23
-\frac12 ⇒ -0.5
\dfrac{3}{4} ⇒ 0.75
3/4 ⇒ 0.75
1{,}000 ⇒ 1000
1,\!000 ⇒ 1000
1 000 ⇒ 1000
$12$ ⇒ 12
\(12\) ⇒ 12
12 \text{ (twelve)} ⇒ 12
12 (twelve) ⇒ 12
2\sqrt{3}\approx 3.46 ⇒ 2\sqrt{3}
x\approx 11 ⇒ 11
x=12 ⇒ 12
AB = 12 cm ⇒ 12
\angle ABC = 30^\circ ⇒ 30
100% ⇒ 1
i ⇒ i
9e0 ⇏ \log_2 1
9e0 ⇏ 0
3e8 ⇏ 3e9
3e8 ⇏ 3*10^9
1.6e-19 ⇏ 9.1e-31
\frac{1.6}{10^{19}} ⇏ \frac{9.1}{10^{31}}
10^{-7} ⇏ 2\cdot 10^{-7}
\frac{1}{10^{8}} ⇏ \frac{1}{10^{9}}
1e-9 ⇏ 0
0 ⇏ 10^{-8}
1,2 ⇏ 1.2
1,2 ⇏ 12
1 2 ⇏ 12
12 ⇏ 1 2
0.33 ⇏ 1/3
3.14 ⇏ \pi
2e ⇏ 2e1
1.0000001 ⇏ 1
5 ⇏ -5
±5 ⇏ 5
\pm 5 ⇏ 5
5 ⇏ ±5
12 (not 13) ⇏ 13
2½ ⇏ 1
1/2 ⇏ 2
\frac{1}{2} ⇏ \frac{2}{1}
1234 ⇏ 1,2,3,4
x=12 ⇏ 13
x=1 ⇏ y=1
1.2.3 ⇏ 6
10 ⇏ 1010_2
1010_2 ⇏ 1010
f' ⇏ f
f'(x) ⇏ f(x)
0.999 ⇏ 1
100 ⇏ 1e3
1e2 ⇏ e
1/0 ⇏ 2/0
R-r ⇏ r-R
3! ⇏ 3
5. ⇏ 5.1
2x ⇏ x^2
\sin x ⇏ \cos x
\infty ⇏ -\infty
(1,2) ⇏ [1,2]
x>3 ⇏ x\ge 3
x<3 ⇏ x>3
\sqrt[3]{8} ⇒ 2
12㎝ ⇒ 12
9.8\ \mathrm{m/s^2} ⇒ 9.8
20\ \Omega ⇒ 20
x = 5 cm ⇒ 5 cm
S=12π ⇒ 12\pi
V = \frac{4}{3}\pi ⇒ \frac43\pi
1,234.5 ⇒ 1234.50
\text{(B) }12 ⇒ 12
about 12 ⇒ 12
approximately 12 ⇒ 12
≈12 ⇒ 12
~12 ⇒ 12
\approx 12 ⇒ 12
12 (exact) ⇒ 12
exactly 12 ⇒ 12
a total of 12 ⇒ 12
12! ⇒ 12!
\frac{7}{25} ⇒ 28%
y=2x+1 ⇒ 2x+1
f(x)=x^2 ⇒ x^2
\frac{\sqrt{3}}{3} ⇒ \frac{1}{\sqrt{3}}
(x+1)(x-1) ⇒ x^2-1
x^2-1 ⇒ (x-1)(x+1)
2\sqrt{2} ⇒ \sqrt{8}
\frac{2}{4} ⇒ \frac12
0.50 ⇒ \frac12
\infty ⇒ ∞
x\geq2 ⇒ x≥2
\emptyset ⇒ ∅
\vec{a} ⇒ \vec{a}
45^\circ ⇒ 45
3:4 ⇒ 3/4
3：4 ⇒ 3:4
3∶4 ⇒ 3:4
\frac{3}{4} ⇒ 3:4
x^2 ⇏ x^3
x^2 ⇏ 2x
3x ⇏ 3e8
2\pi r ⇏ 2\pi
x m ⇏ x
5x cm ⇏ 5 cm
\frac{m}{2} ⇏ \frac{1}{2}
mn ⇏ m
x+2 ⇏ x+2m
AB ⇏ ABC
ABD ⇏ ABC
1,000, 2 ⇏ 1000
f (x) ⇏ f
f(x) ⇏ f
P (A) ⇏ P
B.1 ⇏ 1.B
12 (dozen) ⇏ 12
\text{at least }5 ⇏ 5
\text{more than }5 ⇏ 5
at most 5 ⇏ 5
less than 5 ⇏ 5
not 5 ⇏ 5
minus 5 ⇏ 5
negative 5 ⇏ 5
half of 5 ⇏ 5
0.1 ⇏ 0.10000001
0.3333 ⇏ 1/3
1.414 ⇏ \sqrt{2}
3.1416 ⇏ \pi
100000001 ⇏ 100000002
1.00000001 ⇏ 1.00000002
\frac{1}{1000000} ⇏ \frac{1}{2000000}
-1 ⇏ 1
|x| ⇏ x
x<2 ⇏ x\le 2
x=2 ⇏ x\neq 2
\log 2 ⇏ \ln 2
\sin 30 ⇏ \sin 30^\circ
\frac{a}{b} ⇏ \frac{b}{a}
a-b ⇏ b-a
x_1 ⇏ x_2
x1 ⇏ x2
A_1 ⇏ A_2
\alpha ⇏ \beta
1/x ⇏ x
2^x ⇏ x^2
i ⇏ 1
x+y ⇏ x-y
\sqrt{2} ⇏ 2
2\frac{1}{2} ⇏ 1
5\frac{1}{2} ⇏ \frac{5}{2}
1\frac{1}{2} ⇏ 0.5
\overline{AB} ⇏ \overline{CD}
y=2x ⇏ x=2y
y=2x ⇏ y=2x+1
12_{10} ⇏ 12_8
0.\overline{3} ⇏ 0.3
0.\dot{3} ⇏ 0.3
\pm1 ⇏ 1
\mp 1 ⇏ 1
0 ⇏ \emptyset
\infty ⇏ 0
1/0 ⇏ \infty
\binom{5}{2} ⇏ \binom{5}{1}
5! ⇏ 5
n! ⇏ n
\lceil 2.5 \rceil ⇏ 2.5
f^{-1}(x) ⇏ f(x)
f'(1) ⇏ f(1)
\dot{x} ⇏ x
\hat{x} ⇏ x
\vec{x} ⇏ x
\bar{x} ⇏ x
x^{*} ⇏ x
\frac{dy}{dx} ⇏ y/x
\triangle ABC ⇏ \triangle DEF
ab ⇏ a+b
sin x ⇏ cos x
sin x ⇒ \sin x
2sin(x) ⇒ 2\sin(x)
sin^2(x) ⇒ \sin^2 x
sin x cos x ⇒ \sin x\cos x
sin(x) ⇏ nis(x)
tan(x)/2 ⇒ \frac{\tan x}{2}
arcsin(1) ⇒ \arcsin 1
ln 2 ⇒ \ln 2
ln(2) ⇏ \ln 3
exp(2) ⇒ e^2
2sqrt(3) ⇒ 2\sqrt{3}
sqrt2 ⇒ \sqrt{2}
1.234 ⇏ 1,234
H_2O ⇏ H_3O
CO_2 ⇏ CO
Na^+ ⇏ Na^-
α ⇒ \alpha
2α+π ⇒ \pi+2\alpha
α ⇏ \beta
α ⇏ a
△ABC ⇒ \triangle ABC
√2 ⇒ \sqrt{2}
∠1=30° ⇒ 30°
negative 5 ⇒ -5
minus 2.5 ⇒ -2.5
\approx12 ⇒ 12
\dfrac12 ⇒ 0.5
\angle1=30° ⇒ 30°
x\ge2 ⇒ 2\le x
x\ge2 ⇏ 2
\dfrac12 ⇏ 2
25 per cent ⇒ 25%
25 per cent ⇏ 25 cents
"""
POWER = r"""
2^{10} ⇒ 1024
2**3 ⇒ 8
5² ⇒ 25
10⁶ ⇒ 1000000
10^{-3} ⇒ 0.001
10⁻³ ⇒ 0.001
4^2\text{ cm} ⇒ 16
2^3 ⇒ 2^{3}
x^2 ⇒ x²
2³ ⇒ 8
3^{2} cm ⇒ 9 cm
10^{3} ⇒ 10³
1.5\times10^{3} ⇒ 1500
(2)^3 ⇒ 8
2^{3}\text{ cm} ⇒ 8\text{ cm}
5 cm^2 ⇒ 5
5 cm² ⇒ 5 cm^{2}
9 ⇒ 3^2
\frac{1}{8} ⇒ 2^{-3}
2^3 ⇏ 6
5² ⇏ 52
10^3 ⇏ 103
10^3 ⇏ 10
3^2 ⇏ 32
2^3 ⇏ 3
10⁶ ⇏ 106
2^{10} ⇏ 2
2^{10} ⇏ 210
5^2 ⇏ 5 cm^2
7³ ⇏ 7
7^{2} ⇏ 7
10^2 m ⇏ 10
8^\circ ⇏ 1
4^3 cm ⇏ 4 cm
2^2 cm ⇏ 2 cm^2
x² ⇏ x2
10² ⇏ 10
6^2 ⇏ 6 cm^2
5 cm^2 ⇏ 25
5 cm^3 ⇏ 5 cm^2
12^2 ⇏ 12
3^3 ⇏ 3
2_3 ⇏ 2
101_2 ⇏ 101
5^{\circ} ⇏ 1
2^3=8 ⇒ 8
2^3 = 8 ⇒ 2^3
2^{3} ⇒ 8.0
10^{2}\% ⇒ 100%
(-2)^2 ⇒ 4
4²cm ⇒ 16
5^{2}cm ⇒ 25 cm
1.0×10⁶ ⇒ 1000000
1.0 × 10^6 m ⇒ 1000000
3 * 10^8 ⇒ 3e8
3.0\times{10}^{8} ⇒ 3e8
3x10^8 ⇒ 3e8
3 x 10^8 ⇒ 3e8
3 X 10^8 ⇒ 3e8
\sin^2 x+\cos^2 x ⇒ 1
2^3 ⇏ 2^2
10^2 ⇏ 20
2^10 ⇏ 1025
2^{10} ⇏ 20
5^0 ⇏ 5
5^{-1} ⇏ 5
3^2 cm ⇏ 3 cm^2
3 cm^2 ⇏ 3^2 cm
10^3 g ⇏ 10 g
2² ⇏ 22
m^2 ⇏ m
9^{1/2} ⇏ 9
5 m^2 ⇏ 5 m
5 m² ⇏ 5 m³
10^{-3} m ⇏ 10^3 m
3x10^8 ⇏ 3e9
3 x 10^8 ⇏ 3e7
3\times10^8 ⇏ 3
3 \times 10^8 ⇏ 30^8
2\pi r^2 ⇏ 2\pi
10^{-9} ⇏ 2\times10^{-9}
\sqrt{2}\times10^{-7} ⇏ \sqrt{3}\times 10^{-7}
"""
UNITS = r"""
5 CM ⇒ 5 cm
5 Km ⇒ 5 km
5 meters ⇒ 5 m
5 Meters ⇒ 5 meter
5元 ⇒ ¥5
￥5 ⇒ 5元
5美元 ⇒ $5
5 USD ⇒ $5
$5 ⇒ 5 dollars
5 € ⇒ €5
5 euros ⇒ €5
5\$ ⇒ 5
\$5 ⇒ 5
\$1,234.50 ⇒ 1234.5
5米 ⇒ 5
5平方米 ⇒ 5 m^2
5平方厘米 ⇒ 5
5 平方厘米 ⇒ 5 cm²
60千米/时 ⇒ 60
60 km/h ⇒ 60 kilometers per hour
12名学生 ⇒ 12
3条 ⇒ 3
30度 ⇒ 30°
30^{\circ} ⇒ 30
25℃ ⇒ 25 °C
5㎝ ⇒ 5 cm
5μm ⇒ 5 µm
5\mu m ⇒ 5 μm
5\ \mu\text{m} ⇒ 5
5\,\mathrm{kg} ⇒ 5
10 m/s^2 ⇒ 10 m/s²
10\text{ m/s}^2 ⇒ 10
10 m s^{-2} ⇒ 10 m/s^2
5 MW ⇒ 5 megawatts
5 mW ⇒ 5 milliwatts
100 Ω ⇒ 100 ohms
100\Omega ⇒ 100
3.6\times 10^{6}\text{ J} ⇒ 3600000 J
5 sq cm ⇒ 5 cm^2
5 sq. ft ⇒ 5 square feet
5 ft. ⇒ 5 ft
5 ft² ⇒ 5
60 mph ⇒ 60
2 kWh ⇒ 2
-$5 ⇒ -5
$-5$ ⇒ -5
$-5 ⇒ -5
50 % ⇒ 50%
50 percent ⇒ 50%
5 in ⇒ 5 inches
12岁 ⇒ 12
5年 ⇒ 5
3小时 ⇒ 3 hours
2 hrs ⇒ 2 hours
0.5 m ⇒ 1/2 m
\frac12\text{ m} ⇒ 0.5 m
3万 ⇒ 30000
1.5亿 ⇒ 150000000
2 million dollars ⇒ $2,000,000
5 N·m ⇒ 5
5 N m ⇒ 5 N·m
5克 ⇒ 5 g
5千克 ⇒ 5 kg
5公斤 ⇒ 5千克
5℉ ⇒ 5°F
16π cm² ⇒ 16\pi
24\pi cm^2 ⇒ 24\pi
2m ⇒ 2 m
2\text{m} ⇒ 2
2 m ⇒ 2m
5 mW ⇏ 5 MW
5 mPa ⇏ 5 MPa
3 mJ ⇏ 3 MJ
5 kg ⇏ 5 g
5 cm ⇏ 5 m
$5 ⇏ €5
5 dollars ⇏ 5 euros
¥5 ⇏ $5
5 cm^2 ⇏ 5 cm^3
5平方米 ⇏ 5平方厘米
5米 ⇏ 5厘米
5 km ⇏ 5 mi
30° ⇏ 30 rad
25°C ⇏ 25°F
25℃ ⇏ 25℉
5 min ⇏ 5 m
5 h ⇏ 5 s
1/2 cm ⇏ 1/2 m
0.5 cm ⇏ 1/2 m
\frac{1}{2}\text{ cm} ⇏ \frac{1}{2}\text{ m}
2\pi\text{ cm} ⇏ 2\pi\text{ m}
2\pi cm ⇏ 2\pi mm
1,000m ⇒ 1000
1,000.99m² ⇒ 1000.99
1,000m ⇏ 1,000 cm
1,000x ⇏ 1000
2m ⇏ 2
7s ⇏ 7
2 ⇏ 2m
3h ⇏ 3
2x ⇏ 2
5k ⇏ 5
3万 ⇏ 3
5亿 ⇏ 5
2 million ⇏ 2
2 thousand ⇏ 2
5 million ⇏ 5 billion
60 km/h ⇏ 60 m/s
5 m/s ⇏ 5 m/s^2
5 dozen ⇏ 5
5\text{ million} ⇏ 5
3\text{ dozen} ⇏ 3
8折 ⇏ 8
5 mg ⇏ 5 Mg
5 Ms ⇏ 5 ms
3\text{ dogs} ⇏ 3\text{ cats}
3 dogs ⇏ 3 cats
mW ⇏ MW
2\pi mW ⇏ 2\pi MW
5 mHz ⇏ 5 MHz
12名 ⇏ 12米
5 half ⇏ 5
3\text{ or more} ⇏ 3
3\text{ times more} ⇏ 3
x\text{ is even} ⇏ x
2\text{ squared} ⇏ 2
5 GB ⇏ 5 MB
5 Gb ⇏ 5 GB
5 gb ⇒ 5 GB
5 dB ⇒ 5
5 ppm ⇒ 5
2 gallons ⇒ 2
3 acres ⇏ 3 hectares
Rs. 500 ⇒ 500
12 \operatorname{cm} ⇒ 12
3/4小时 ⇒ 3/4
3/4小时 ⇏ 3/4 s
90分 ⇒ 90
3分之一 ⇏ 3
12以上 ⇏ 12
5的平方 ⇏ 5
12不到 ⇏ 12
2\pi h ⇏ 2\pi
5 kHz ⇏ 5 Hz
2a ⇏ 2
2 m ⇏ 2 cm
$3\times10^{8}$ m/s ⇒ 3e8
3.00e8 ⇒ 3e8
-1.5e-3 ⇒ -0.0015
¥12.50 ⇒ 12.5
12.50元 ⇒ 12.5
RMB 12 ⇒ 12
$12 million ⇒ 12 million
USD 5 ⇒ $5
5 rupees ⇒ 5
₹5 ⇒ 5
5k ⇒ 5k
12cm ⇒ 12
12厘米 ⇒ 12 cm
12 厘米 ⇒ 12厘米
12千克 ⇒ 12 kg
12 kgs ⇒ 12 kg
3 litres ⇒ 3 L
3 ml ⇒ 3 mL
3 mL ⇒ 3
90 degrees ⇒ 90°
90 degree ⇒ 90
π/2 radians ⇒ \pi/2
2 rad ⇒ 2
5 N/m ⇒ 5
9.8 m/s² ⇒ 9.8
9.8 m/s^2 ⇒ 9.8
9.8\ \mathrm{m\cdot s^{-2}} ⇒ 9.8 m/s^2
1.5 V ⇒ 1.5
20 Ω ⇒ 20
5 kΩ ⇒ 5
5μA ⇒ 5
100 mAh ⇒ 100
12 people ⇒ 12
12人 ⇒ 12
3倍 ⇒ 3
12 hours ⇒ 12 h
--5 ⇒ 5
--5 ⇏ -5
-$-5 ⇏ -5
12小时 ⇒ 12
5分钟 ⇒ 5 min
2天 ⇒ 2 days
2个月 ⇒ 2
6岁 ⇒ 6
20% ⇒ 20 %
20％ ⇒ 20%
AB=5cm ⇒ 5
3%-5% ⇒ 3%–5%
28 percent ⇒ 28\%
$28$ \% ⇒ 28%
28 pct ⇒ 28%
0.28 ⇒ 28%
\angle A = 45° ⇒ 45
∠A=45° ⇒ 45°
3 \times 10 ⇏ 3e10
3e8 ⇏ 3
5 KW ⇏ 5 mW
5 KJ ⇏ 5 J
5 MB ⇏ 5 mb
5 L ⇏ 5 mL
5 l ⇏ 5 ml
5 N ⇏ 5 nm
5 Pa ⇏ 5 kPa
$5 ⇏ 5 cents
5¢ ⇏ $5
£5 ⇏ €5
5元 ⇏ 5美元
5元 ⇏ $5
¥5 ⇏ €5
5万元 ⇏ 5元
5 k$ ⇏ 5
5千米 ⇏ 5米
5千克 ⇏ 5克
5毫米 ⇏ 5厘米
5平方米 ⇏ 5米
5立方米 ⇏ 5平方米
5 km/h ⇏ 5 km
5 km/h ⇏ 5 h/km
5 m/s ⇏ 5 m s
5分 ⇏ 5分钟
5 years ⇏ 5 months
5 h ⇏ 5 min
5 s ⇏ 5 ms
1 kg ⇏ 1000 g
5 degrees ⇏ 5 rad
5°C ⇏ 5 K
5% ⇏ 5°
5% ⇏ 5 cm
5‰ ⇏ 5%
5‰ ⇏ 5
0.5 ⇏ 5%
500% ⇏ 50%
50% ⇏ 5
50% ⇏ 0.05
7m ⇏ 7
7n ⇏ 7
3a ⇏ 3
2h ⇏ 2
4l ⇏ 4
9d ⇏ 9
5t ⇏ 5
3g ⇏ 3
2m ⇏ 2cm
m ⇏ 2m
2 m ⇏ 3 m
2m ⇏ 2n
2m ⇏ 2s
3N ⇏ 3
5V ⇏ 5
6A ⇏ 6
90s ⇏ 90
5 more ⇏ 5
5th ⇏ 6
2.718 ⇏ e
1e-10 ⇏ 1e-11
AB=5 ⇏ CD=5
12a ⇏ 12b
4.2 J/(kg·°C) ⇒ 4.2
4.2 J/(kg·K) ⇒ 4.2 J/kg/K
4.2 J/(kg·K) ⇏ 4.2 J/kg
5 米每秒 ⇒ 5 m/s
1.0\times10^3\text{ kg/m}^3 ⇒ 1.0×10³ kg/m³
"""
BEHIND = r"""
3\times 10^8\text{ m/s} ⇒ 3e8 m/s
\frac{1}{2}\text{ cup} ⇒ 1/2
x=5\text{ cm} ⇒ 5
17 apples ⇒ 17\text{ apples}
12\text{ only} ⇒ 12
3\text{ dogs} ⇏ 4\text{ dogs}
12\text{ (thirteen)} ⇏ 13
3\text{ hundred} ⇏ 3
3\text{ fifths} ⇏ 3
3\text{ quarters} ⇏ 3
3\text{ pairs} ⇏ 3
x=3\text{ or }x=4 ⇏ 3
24\pi\text{ cm} ⇏ 24\pi\text{ cm}^2
\frac13\text{ m} ⇏ \frac13\text{ s}
17\text{ apples} ⇏ 17\text{ oranges}
17\text{ apples} ⇏ 17 cm
2\text{ is the answer to }3 ⇏ 2
5\text{ at most} ⇏ 5
5\text{ or less} ⇏ 5
"""
NOUN = r"""
\boxed{17\text{ apples}} ⇒ 17
\boxed{3\text{ dogs}} ⇒ 3
\boxed{3 \text{ red balls}} ⇒ 3
\boxed{24\pi\text{ cm}^2} ⇒ 24\pi
\boxed{24\pi \, \text{cm}^{2}} ⇒ 24\pi
\boxed{\frac{1}{3}\text{ meters}} ⇒ 1/3
\boxed{\frac13\text{ hour}} ⇒ 1/3
\boxed{600\text{ nm}} ⇒ 600
\boxed{600\,\mathrm{nm}} ⇒ 600
\boxed{125\textnormal{ miles}} ⇒ 125
\boxed{125\textrm{ miles}} ⇒ 125 miles
\boxed{12\text{ square units}} ⇒ 12
\boxed{12\mbox{ cm}^2} ⇒ 12
\boxed{5\sqrt{2}\text{ cm}} ⇒ 5\sqrt{2}
\boxed{5\sqrt{2}\ \text{units}} ⇒ 5\sqrt2
\boxed{12 \text{ (twelve)}} ⇒ 12
\boxed{12\text{ students}} ⇒ 12
\boxed{x=12\text{ cm}} ⇒ 12
\boxed{2\sqrt{3}\text{ cm}} ⇒ 2\sqrt{3} cm
\boxed{28\text{ percent}} ⇒ 28%
\boxed{3\text{ people}} ⇒ 3
\boxed{3\text{ m/s}} ⇒ 3
\boxed{\$5} ⇒ 5
\boxed{12 \text{ sides}} ⇒ 12
\boxed{1000\text{ years}} ⇒ 1000
\boxed{-3\text{ degrees}} ⇒ -3
\boxed{1{,}234\text{ books}} ⇒ 1234
\boxed{50\pi\text{ m}^3} ⇒ 50\pi m^3
\boxed{30 \text{ degrees}} ⇒ 30^\circ
\boxed{2\text{ solutions}} ⇒ 2
\boxed{3 \ \text{cm}, 4 \ \text{cm}} ⇒ 3, 4
\boxed{24\pi\text{ cm}^2} ⇏ 24
\boxed{24\text{ cm}^2} ⇏ 24 cm^3
\boxed{3\text{ dogs}} ⇏ 3\text{ cats}
\boxed{3\text{ million}} ⇏ 3
\boxed{3\text{ dozen}} ⇏ 3
\boxed{3\text{ thousand}} ⇏ 3
\boxed{3\text{ or }4} ⇏ 3
\boxed{n\text{ is even}} ⇏ n
\boxed{2\text{ halves}} ⇏ 2
\boxed{17\text{ apples}} ⇏ 18
\boxed{\frac{1}{3}\text{ cm}} ⇏ \frac13\text{ m}
\boxed{5\text{ tenths}} ⇏ 5
\boxed{5\text{ percent}} ⇏ 5\text{ cm}
\boxed{3\text{ less than }5} ⇏ 3
\boxed{3\text{ to }5} ⇏ 3
\boxed{3\text{ and }5} ⇏ 3
\boxed{12\text{ pm}} ⇏ 12\text{ am}
\boxed{17 \text{ apples left}} ⇒ 17
\boxed{10\text{ units}} ⇒ 10
\boxed{5\text{ sq. units}} ⇒ 5
\boxed{0.06 \text{ yuan}} ⇒ 0.06
\boxed{12\text{ cubic inches}} ⇒ 12
\boxed{12\text{ inches}} ⇒ 12
\boxed{12\text{ (in cm)}} ⇒ 12
\boxed{2\pi\text{ radians}} ⇒ 2\pi
\boxed{\sqrt{2}\text{ units}} ⇒ \sqrt{2}
\boxed{15\sqrt{3}\text{ square feet}} ⇒ 15\sqrt3
\boxed{18.90\text{ dollars}} ⇒ \$18.90
\boxed{5\text{ ways}} ⇒ 5
\boxed{3\text{ hours and }20\text{ minutes}} ⇒ 3\text{ hours and }20\text{ minutes}
\boxed{3\text{ h }20\text{ min}} ⇒ 3 hours 20 minutes
\boxed{12 \text{ or } 13} ⇒ 12, 13
\boxed{12\text{ or }13} ⇏ 12
\boxed{3\text{ hours }20\text{ minutes}} ⇏ 3
\boxed{3\text{ h }20\text{ min}} ⇏ 3 h
\boxed{5\text{ ft }3\text{ in}} ⇏ 5
\boxed{5\text{ ft }3\text{ in}} ⇏ 3
\boxed{12\text{ of }13} ⇏ 12
\boxed{2\text{ out of }3} ⇏ 2
\boxed{5\text{ not }6} ⇏ 5
\boxed{14\text{ years ago}} ⇒ 14
\boxed{14\text{ fewer}} ⇒ 14
\boxed{14\text{ below zero}} ⇏ 14
\boxed{14\text{ degrees below zero}} ⇏ 14
\boxed{14\text{ below}} ⇏ 14
\boxed{14\text{ divided by x}} ⇏ 14
"""


@pytest.mark.parametrize("table", [NUMBER, POWER, UNITS, BEHIND], ids=["numbers", "powers", "units", "words behind"])
def test_the_same_quantity(table):
    assert misjudged(table, is_right) == []


def test_nouns_behind_a_value():
    mmpr = get_reward("mmpr")
    assert misjudged(NOUN, lambda given, truth: mmpr(f"<think>a</think>{given}", truth).accuracy) == []


def test_a_number_is_all_there_is():
    assert quantities.read("12 apples").number is None
    assert quantities.read("").number is None
    assert quantities.read("cm").number is None
    assert quantities.read("12 cm / s").unit == quantities.read("12 cm per second").unit != ""
