"""Numbers and formulas, with or without a unit."""

import decimal
import re
from typing import NamedTuple

from internvl_jax.grading import math, spelling, units

_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_SCALES |= {"百": 2, "千": 3, "万": 4, "百万": 6, "千万": 7, "亿": 8}
_SCALE = "|".join(sorted(_SCALES, key=len, reverse=True))
_NUMBER = re.compile(
    r"(?P<sign>[+-]?)\s*(?P<currency>(?:US)?[$€£¥￥₹]|USD|RMB|CNY|EUR|GBP|Rs\.?|)\s*(?P<inner>[+-]?)\s*"
    r"(?P<digits>(?:[1-9]\d{0,2}(?:,\d{3})+|[1-9]\d{0,2}(?: \d{3})+|\d+)(?!\d)(?:\.\d*)?|\.\d+)"
    r"(?:[eE](?P<exponent>[+-]?\d{1,3})(?!\d)"
    r"|\s*(?:\\times|\\cdot|[×·*xX])\s*10\s*\^\s*(?:(?P<digit>\d)(?!\d)|\{\s*(?P<power>[+-]?\d{1,3})\s*\}))?"
    r"(?P<behind>.*)"
)
_SCALED = re.compile(rf"\s*(?P<scale>{_SCALE})(?![A-Za-z])(?P<behind>.*)")
_EXACT = decimal.Context(prec=1000)  # 28 digits are the usual one: long numbers would be rounded, and equal
_AGO = " ago"
_VARIABLE = re.compile(r"[A-Za-z](?:\^.*)?")  # right behind a number: 2m may be two metres, or m twice
_COUNTED = re.compile(r"\s*[一-鿿]{1,3}")  # 12个, 3名
_NOUN = re.compile(r"[A-Za-z][A-Za-z ,.'-]*")
# Words behind a number that make another one of it or say something about it.
_TELLING = re.compile(
    rf"\b(?:{_SCALE}|and|or|not|no|to|than|more|less|most|least|over|under|plus|minus|times|dozen|score|pair|half|halves"
    r"|third|quarter|fourth|fifth|sixth|seventh|eighth|ninth|tenth|hundredth|thousandth|millionth|squared|cubed"
    r"|below|divided|multiplied|choose|factorial|mod|modulo|base|is|are|was|if|when|where|for|am|pm|bc|ad|bce|ce)s?\b"
    r"|[百千万亿十半折成多余几点零第以方的不最至少]|分之",
    re.IGNORECASE,
)
_UNIT_BEGINS = re.compile(r"\s(?=\S)|(?<=[})])(?=[^\W\d_]{2})|(?<=\d)(?=[一-鿿])|(?=[°%])")


class Quantity(NamedTuple):
    """A value, its number unless it is a formula, and its unit, or what is counted: '' if it has none."""

    value: str
    number: decimal.Decimal | None
    unit: str


def same(given: str, truth: str) -> bool | None:
    """Equal values, and units that don't contradict: one may be missing. 50 % is 50 as well as 0.5; units are not
    converted. None for two formulas with nothing behind them."""
    a, b = read(given), read(truth)
    if a.unit and b.unit and a.unit.removeprefix("°") != b.unit.removeprefix("°"):  # 25 C is 25 °C
        return False
    percent = [x.unit == "%" and not y.unit for x, y in ((a, b), (b, a))]
    if a.number is not None and b.number is not None:
        hundredth = {x.number.scaleb(-2, _EXACT) for x, percents in zip((a, b), percent, strict=True) if percents}
        return a.number == b.number or bool(hundredth & {a.number, b.number})
    if (a.value, b.value) == (spelling.words(given), spelling.words(truth)):
        return None
    if a.value == b.value or math.equal(a.value, b.value):
        return True
    if any(percent):
        return math.equal(*(f"({x.value})/100" if percents else x.value for x, percents in zip((a, b), percent)))
    given, truth = spelling.words(given), spelling.words(truth)  # the m of 2m may be metres: it counts
    return not (a.unit and b.unit) and math.letters(given) == math.letters(truth) and math.equal(given, truth)


def read(text: str) -> Quantity:
    """What `plain` text says, as a quantity; a formula without a unit if nothing else."""
    cut = spelling.said_behind(text)
    unit = _said_unit(*cut) if cut else None
    if unit is not None:
        quantity = _number(cut[0]) or Quantity(cut[0], None, "")
        return quantity._replace(unit=quantity.unit or unit)
    bare = spelling.words(text)
    return _number(bare) or _formula(bare)


def _said_unit(value: str, said: str) -> str | None:
    """The unit or noun that words behind a value are, '' for a remark about it, None for something else."""
    aside = said.startswith("(")
    said = said.strip("() ")
    unit = units.read(said)
    if unit is None and re.search(r"\d", value) and _NOUN.fullmatch(said) and not _TELLING.search(said):
        unit = "" if aside else said.casefold().removesuffix("s")
    return unit


def _number(text: str) -> Quantity | None:
    match = _NUMBER.fullmatch(text)
    if match is None or (match["sign"] and match["inner"]):  # --5
        return None
    scale, behind = 0, match["behind"]
    currency = units.read(match["currency"].replace("US$", "$"))
    is_variable = _VARIABLE.fullmatch(behind) and "," not in match["digits"]  # 1,000m is no formula
    unit = None if is_variable else units.read(behind.removesuffix(_AGO))
    if behind.endswith(_AGO):  # 3 hours ago are 3, and no 3 hours
        unit = unit + _AGO if unit else None
    if unit is None and (scaled := _SCALED.fullmatch(behind)):
        scale, behind = _SCALES[scaled["scale"]], scaled["behind"]
        unit = units.read(behind)
    if unit is None and _COUNTED.fullmatch(behind) and not _TELLING.search(behind):
        unit = behind.strip()
    if unit is None or (unit and currency):
        return None
    power = int(match["exponent"] or match["digit"] or match["power"] or 0)
    number = decimal.Decimal(match["sign"] + match["inner"] + re.sub("[, ]", "", match["digits"]))
    number = number.scaleb(power + scale, _EXACT)
    value = f"{number:f}" if scale else text[: len(text) - len(match["behind"])]
    return Quantity(value, number, unit or currency)


def _formula(text: str) -> Quantity:
    """A single letter behind a formula is one of its variables rather than a unit."""
    if re.search(r"\d", text):
        for gap in _UNIT_BEGINS.finditer(text):
            value, behind = text[: gap.start()], text[gap.end() :]
            if math.TRIGONOMETRIC.search(value) and behind.startswith("°"):
                break  # of the angle
            if re.search(r"[A-Za-z] \d", value):
                break  # 3 h 20 min
            if not _VARIABLE.fullmatch(behind) and units.read(behind) and value[-1:] not in ("", *"+-*/^_=<>,({"):
                return Quantity(value, None, units.read(behind))
    return Quantity(text, None, "")
