"""Units: what one is called by symbol, in English and in Chinese. None is converted into another."""

import re

_PREFIXES = dict(
    line.split(maxsplit=1)
    for line in ("n nano 纳", "μ micro 微", "m milli 毫", "c centi 厘", "d deci 分", "h hecto 百")
    + ("k kilo 千", "M mega 兆", "G giga 吉", "T tera 太")
)
# A symbol, its usual prefixes, and its names in full. Every name takes an s.
_PREFIXED = """
m nμmcdk meter metre 米
g μmk gram gramme 克
s nμm second 秒
L mcd liter litre 升 l
N mk newton 牛顿 牛
J mkM joule 焦耳 焦
W mkMG watt 瓦特 瓦
V μmk volt 伏特 伏
A μm ampere amp 安培 安
Hz kMG hertz 赫兹
Pa mhkMG pascal 帕斯卡 帕
mol m mole 摩尔
Ω mkM ohm 欧姆 欧
eV kMG electronvolt 电子伏特
C nμ coulomb 库仑
F nμ farad 法拉
T mμ tesla 特斯拉
Wh kM watthour
Ah m amperehour
cal k calorie 卡
B kMGT byte 字节
"""
# A symbol and its names.
_OTHERS = """
° degree deg 度
°C celsius 摄氏度
°F fahrenheit 华氏度
K kelvin 开尔文
rad radian 弧度
s sec
min minute 分钟
h hour hr 小时 时
day 天 日
week 周
month 个月
year yr 年
in inch inches
ft foot feet
yd yard
mi mile 英里
km 公里
cm 公分
kg 公斤
lb pound
oz ounce
t ton tonne 吨
atm atmosphere
bar
mph
rpm
ppm
dB decibel 分贝
hp horsepower 马力
knot
acre 英亩
ha hectare 公顷
gallon gal 加仑
px pixel 像素
bit
unit
person people
% percent percentage pct
dollar $ usd 美元
euro € eur 欧元
gbp £ 英镑
yuan ¥ ￥ cny rmb 元
rupee ₹ rs inr
cent ¢
"""
_SPELT = (
    (re.compile(r"\\mu\s*"), "μ"),
    (re.compile(r"\\(?:Omega|ohm)(?![A-Za-z])"), "Ω"),
    (re.compile(r"\\(?:[ct]dot|times)(?![A-Za-z])|·|×"), "*"),
    (re.compile(r"/\s*\(([^()/]*)\)"), lambda match: "/" + match[1].replace("*", "/")),  # J/(kg*K)
    (re.compile(r"\bper cent\b"), "%"),
    (re.compile(r"\bper\b|每"), "/"),
    (re.compile(r"°\s*([CF])\b", re.IGNORECASE), r"°\1"),
    (re.compile(r"\bsq(?:uare|\.)?(?=\s)|平方"), "2@"),
    (re.compile(r"\bcu(?:bic|\.)?(?=\s)|立方"), "3@"),
)
_TOKEN = re.compile(
    r"\s*(?:(?P<ahead>[23])@|\^\s*\{?(?P<power>-?[1-9])\}?|(?P<operator>[/*])|(?P<name>°?[^\W\d_]+|[°%$€£¥￥₹¢])\.?)\s*"
)


def _names() -> dict[str, str]:
    """Every name of every unit, and its symbol."""
    found: dict[str, str] = {}
    for line in _PREFIXED.strip().split("\n"):
        symbol, prefixes, *names = line.split()
        for prefix in ("", *prefixes):
            english, chinese = _PREFIXES[prefix].split() if prefix else ("", "")
            found[prefix + symbol] = prefix + symbol
            for name in names:
                spoken = (english if len(name) > 1 else prefix) + name if name.isascii() else chinese + name
                found |= {spoken: prefix + symbol, spoken + "s": prefix + symbol}
    for line in _OTHERS.strip().split("\n"):
        symbol, *names = line.split()
        for name in (symbol, *names):
            found |= {name: symbol} | ({name + "s": symbol} if len(name) > 1 else {})
    return found


_NAMES = _names()
_FOLDED: dict[str, set[str]] = {}  # names without case: their symbols
for _name, _symbol in _NAMES.items():
    _FOLDED.setdefault(_name.casefold(), set()).add(_symbol)


def read(text: str) -> str | None:
    """The unit in one spelling, '' for none (or just "units"), None if `text` is something else."""
    for pattern, spelt in _SPELT:
        text = pattern.sub(spelt, text)
    text = text.strip()
    factors: list[tuple[str, int]] = []
    sign = power = 1  # of the next factor
    at = 0
    while at < len(text):
        token = _TOKEN.match(text, at)
        if token is None:
            return None
        at = token.end()
        if token["ahead"]:
            power = int(token["ahead"])
        elif token["operator"]:
            sign = -1 if token["operator"] == "/" else 1
        elif token["power"]:
            if not factors:
                return None
            factors[-1] = factors[-1][0], factors[-1][1] * int(token["power"])
        else:
            symbol = _symbol_of(token["name"])
            if symbol is None:
                return None
            factors.append((symbol, sign * power))
            sign = power = 1
    return "*".join(name if power == 1 else f"{name}^{power}" for name, power in sorted(factors) if name != "unit")


def _symbol_of(name: str) -> str | None:
    """Case tells mW from MW, mg from Mg and Gb from GB, but not CM from cm."""
    if name in _NAMES:
        return _NAMES[name]
    folded = _FOLDED.get(name.casefold(), set())
    if len(folded) != 1 or len(name) == 1:
        return None
    (symbol,) = folded
    is_other_prefix = symbol.casefold() == name.casefold() and {symbol[0], name[0]} == {"m", "M"}
    is_bits = symbol[-1] == "B" and name[0].isupper() and name[-1] == "b"  # Gb is no GB
    return None if is_other_prefix or is_bits else symbol
