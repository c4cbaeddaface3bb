"""Dates, times, ranges and ratios of three: digits with signs between them that are no sum."""

import math
import re
from typing import NamedTuple

from internvl_jax.grading import quantities

HOUR = 3600  # seconds
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MONTH = rf"(?P<month>{'|'.join(_MONTHS)})[a-z]*\.?"
_DAY, _YEAR = r"(?P<day>\d{1,2})(?:st|nd|rd|th)?", r"(?:,?\s+(?P<year>\d{4}))?"
_DATES = (
    re.compile(rf"{_MONTH}\s+{_DAY}{_YEAR}"),
    re.compile(rf"{_DAY}(?:\s+of)?\s+{_MONTH}{_YEAR}"),
    re.compile(r"(?:(?P<year>\d{4})年)?(?P<month>\d{1,2})月(?P<day>\d{1,2})[日号]"),
    re.compile(r"(?P<year>\d{4})([-/.])(?P<month>\d{1,2})\2(?P<day>\d{1,2})"),
    re.compile(rf"{_MONTH}\s+(?P<year>\d{{4}})(?P<day>)"),
    re.compile(r"(?P<year>(?:19|20)\d\d)[-/](?P<month>0[1-9]|1[0-2])(?P<day>)"),
)
_SIGNED = re.compile(  # dates of unknown order, versions
    r"\d+(?:-\d+){2,}|\d{1,2}/\d{1,2}/\d{2,4}|\d+(?:\.\d+){2,}"
)
_TIME = re.compile(
    r"(?P<hour>[01]?\d|2[0-4])(?:[:点](?P<minute>[0-5]\d)分?(?::(?P<second>[0-5]\d))?)?\s*"
    r"(?:(?P<half>[ap])\.?\s?m|(?P<clock>o'?clock|点整?))?"
)
_DECADE = re.compile(r"(?:the\s+)?(\d{2,3}0)'?s")
_RATIO = re.compile(r"\d+(?:\s*:\s*\d+){2,}")
_RANGE = re.compile(r"(?:from\s+)?(?P<low>[$€£¥]?\d[^-]*?)\s*(?:-{1,3}|\bto\b|[到至])\s*(?P<high>[$€£¥]?\d.*)")


class _Time(NamedTuple):
    seconds: int
    has_half: bool  # am or pm; 3:30 may be in the afternoon


def same(given: str, truth: str) -> bool | None:
    """Are they the same date, time, range or ratio? None if neither is any; one is never equal to something else."""
    a, b = _read(given.casefold()), _read(truth.casefold())
    if a is None and b is None:
        return None
    if isinstance(a, _Time) and isinstance(b, _Time):
        other = b if a.has_half else a
        is_half_open = a.has_half != b.has_half and other.seconds < 13 * HOUR
        return a.seconds == b.seconds or (is_half_open and abs(a.seconds - b.seconds) == 12 * HOUR)
    if isinstance(a, list) and isinstance(b, list):  # ranges
        return all(quantities.same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def _read(text: str) -> tuple | list[str] | None:
    for pattern in _DATES:
        if match := pattern.fullmatch(text):
            month = match["month"]
            month = _MONTHS.index(month) + 1 if month in _MONTHS else int(month)
            return int(match["year"] or 0), month, int(match["day"] or 0)
    if _SIGNED.fullmatch(text):
        return tuple(re.sub(r"\b0+(?=\d)", "", text).replace("/", "-").split("-"))
    if (match := _TIME.fullmatch(text)) and (match["minute"] or match["half"] or match["clock"]):
        hour = int(match["hour"]) % 12 + 12 * (match["half"] == "p") if match["half"] else int(match["hour"])
        seconds = HOUR * hour + 60 * int(match["minute"] or 0) + int(match["second"] or 0)
        return _Time(seconds, bool(match["half"]))
    if match := _DECADE.fullmatch(text):
        return ("decade", match[1])
    if _RATIO.fullmatch(text):
        parts = [int(part) for part in text.split(":")]
        return tuple(part // max(1, math.gcd(*parts)) for part in parts)
    if match := _RANGE.fullmatch(text):
        ends = [match["low"], match["high"]]
        return ends if all(quantities.read(end).number is not None for end in ends) else None
    return None
