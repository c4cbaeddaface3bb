"""Numbers with thousands separators, units and percent."""

import decimal
import re
from typing import NamedTuple

_SCALES = {"thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_UNITS = {
    "°": "degree degrees deg",
    "mm": "millimeter millimeters millimetre millimetres",
    "cm": "centimeter centimeters centimetre centimetres",
    "m": "meter meters metre metres",
    "km": "kilometer kilometers kilometre kilometres",
    "in": "inch inches",
    "ft": "foot feet",
    "yd": "yard yards",
    "mi": "mile miles",
    "g": "gram grams",
    "kg": "kilogram kilograms",
    "mg": "milligram milligrams",
    "l": "liter liters litre litres",
    "ml": "milliliter milliliters millilitre millilitres",
    "s": "sec second seconds",
    "min": "minute minutes",
    "h": "hr hrs hour hours",
    "day": "days",
    "week": "weeks",
    "month": "months",
    "year": "years",
    "unit": "units",
    "dollar": "dollars usd",
    "n": "newton newtons",
    "j": "joule joules",
    "w": "watt watts",
    "v": "volt volts",
    "a": "ampere amperes",
    "hz": "hertz",
    "pa": "pascal pascals",
    "k": "kelvin",
    "°c": "celsius",
    "°f": "fahrenheit",
    "mol": "mole moles",
    "ω": "ohm ohms",
    "%": "percent pct",
}
_NAMES = {name: unit for unit, names in _UNITS.items() for name in (unit, *names.split())}
_SIGNS = (
    *((r"\!", ""), ("{,}", ","), ("−", "-"), (r"\%", "%"), (r"\$", "$")),
    *((r"^{\circ}", "°"), (r"^\circ", "°"), ("° c", "°c"), ("° f", "°f")),
)
_CURRENCY = {"$": "dollar", "€": "euro", "£": "pound", "¥": "yen"}
_NUMBER = re.compile(
    r"(?P<currency>[$€£¥]?)\s*(?P<sign>[+-]?)\s*"
    r"(?P<digits>(?:[1-9]\d{0,2}(?:,\d{3})+|[1-9]\d{0,2}(?: \d{3})+|\d+)(?:\.\d*)?|\.\d+)(?P<power>e[+-]?\d{1,3})?"
    rf"(?:\s+(?P<scale>{'|'.join(_SCALES)}))?(?P<unit>.*)"
)
_EXACT = decimal.Context(prec=1000)  # 28 digits are the usual one: long numbers would be rounded, and equal
_SQUARED = re.compile(r"(square|cubic) (\S+)")


class Number(NamedTuple):
    value: decimal.Decimal
    unit: str  # '' if it has none


def read(text: str) -> Number | None:
    """A number and its unit, if that is all there is in `text` (as `answers.StatedAnswer` has it)."""
    for latex, sign in _SIGNS:
        text = text.replace(latex, sign)
    match = _NUMBER.fullmatch(text)
    if match is None:
        return None
    unit = _unit(match["unit"])
    if unit is None or (unit and match["currency"]):
        return None
    digits = re.sub("[, ]", "", match["digits"])
    value = decimal.Decimal(match["sign"] + digits + (match["power"] or ""))
    return Number(value.scaleb(_SCALES.get(match["scale"], 0), _EXACT), unit or _CURRENCY.get(match["currency"], ""))


def same(a: Number, b: Number) -> bool:
    """Equal values, and units that don't contradict: one may be missing. 50 % is 50 as well as 0.5; units are not
    converted."""
    if a.unit and b.unit and a.unit != b.unit:
        return False
    hundredth = {n.value.scaleb(-2, _EXACT) for n, other in ((a, b), (b, a)) if n.unit == "%" and not other.unit}
    return a.value == b.value or bool(hundredth & {a.value, b.value})


def _unit(text: str) -> str | None:
    """The unit by its short name, '' for none, None if `text` is something else: `x` is no unit, and `m` right after
    a number may be a variable."""
    word = text.strip()
    if len(word) == 1 and word.isalpha() and word == text:
        return None
    word = word.replace("²", "^2").replace("³", "^3")
    word = _SQUARED.sub(lambda match: match[2] + ("^2" if match[1] == "square" else "^3"), word)
    word = re.sub(r"\^\s*\{?([23])\}?", r"^\1", word)
    parts = []
    for part in re.split(r"\s*(/|\^[23])\s*| per ", word):
        part = "/" if part is None else part
        if part and part not in ("/", "^2", "^3") and part not in _NAMES:
            return None
        parts.append(_NAMES.get(part, part))
    return "".join(parts)
