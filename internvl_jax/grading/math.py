"""Equivalence of mathematical expressions, through math-verify (extra `rl`).

Parsing a formula takes milliseconds and simplifying one may take for ever: call it where something can end it, as
`grading.pool` does. The library's own time-outs are signals, which only main threads may have; they are switched off.
"""

import importlib
import importlib.util
import logging
import re
import unicodedata
from typing import Any

from internvl_jax.errors import InputError

MOST_DIGITS = 10_000  # of a power that is worked out
DEEPEST = 40  # brackets within brackets
CLOSE = 1e-5  # relative; the library compares six decimals, to which 1e-19 and 1e-31 are the same
_FUNCTIONS = "(?:arc)?(?:sin|cos|tan|cot|sec|csc)|log|ln|exp"
_MATHEMATICAL = re.compile(rf"[\d\\+\-*/^=<>|(\[√α-ω∞∅]|\b(?:pi|inf|{_FUNCTIONS})\b")
_COMMAND = re.compile(
    r"\\(?:begin|end)\{\w+\}|\\[A-Za-z]+"
    rf"|(?<![A-Za-z])(?:sqrt|pi|inf|and|or|{_FUNCTIONS})(?![A-Za-z])"
)
_CHINESE = re.compile("[一-鿿]")
_WORD = re.compile(r"[^\W\d_]{3,}")
_DROPPED = re.compile(r"'|\\prime|(?<=\d)\s*_\s*\{?\s*\w+")  # by the library: f' would be f, and 101_2 be 101
_LETTER = re.compile(r"\\[A-Za-z]+|[A-Za-z]")  # or a command
_FACTORIAL = re.compile(r"!|\\[dt]?binom|\\prod|\\sum")
TRIGONOMETRIC = re.compile(r"sin|cos|tan|cot|sec|csc")
_DEGREES = re.compile(r"(\d+(?:\.\d+)?)\s*°")
_HUGE = re.compile(r"\d[eE]\s*[+-]?\d{5}")
_LARGE = re.compile(r"\d{5}|![\s)}]*!")  # numbers to take factorials of
_POWERS = re.compile(r"\d[\d.]*[)}\s]*(?:(?:\^|\*\*)[\s({+-]*\d+[)}\s]*)+")
_AS_LATEX = (
    (re.compile(r"(\d+)\.(\d*)\\(?:overline|bar)\s*\{(\d+)\}"), lambda match: _repeating(*match.groups())),
    (re.compile(r"(\d+)\.(\d*)\\dot\s*\{?(\d)\}?(?![\d\\}])"), lambda match: _repeating(*match.groups())),
    (
        re.compile(r"(\d+)\.(\d*)\\dot\s*\{?(\d)\}?(\d*)\\dot\s*\{?(\d)\}?(?!\d)"),
        lambda match: _repeating(match[1], match[2], match[3] + match[4] + match[5]),
    ),
    (re.compile(r"(?<![\\A-Za-z])sqrt\s*(?:\(([^()]*)\)|(\d+))"), r"\\sqrt{\1\2}"),
    (re.compile(rf"(?<![\\A-Za-z])({_FUNCTIONS})(?![A-Za-z])"), r"\\\1 "),  # or it would be s times i times n
    (re.compile(r"\\[dt]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"(?<![\\A-Za-z])pi(?![A-Za-z])"), r"\\pi"),
    (re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)[eE]([+-]?\d+)(?![\w.])"), r"(\1\\cdot 10^{\2})"),  # 3e8
    (re.compile(r"(?<![\w./])(\d+)\s+(\d+)\s*/\s*(\d+)(?![\w./])"), r"(\1+\\frac{\2}{\3})"),  # 7 3/4
    (re.compile(r"(?<![\w^.}/)])(\d+)\s*/\s*(\d+)(?![\w./^!])"), r"\\frac{\1}{\2}"),  # 1/2 m is no 1/(2m)
    (re.compile(r"\\frac\s*(\d)\s*(\d)"), r"\\frac{\1}{\2}"),
    (re.compile(r"(?<![_^]\d)(?<=\d)\s+(?=\d)"), r" \\unknown "),  # 1 2 is not 1 + 2
    (re.compile(r"√\s*\(?(\w+)\)?"), r"\\sqrt{\1}"),
    (re.compile(r"\*\*"), "^"),
    (re.compile("°"), r"^\\circ "),
    (re.compile("%"), r"\\%"),
    (re.compile("×|·"), r"\\cdot "),
    (re.compile("÷"), "/"),
    (re.compile("±"), r"\\pm "),
    (re.compile("≠"), r"\\ne "),
    (re.compile("≤"), r"\\le "),
    (re.compile("≥"), r"\\ge "),
    (re.compile("∞"), r"\\infty "),
    (re.compile("∪"), r"\\cup "),
    (re.compile("∈"), r"\\in "),
    (re.compile("∅"), r"\\emptyset "),
    (re.compile("[α-ω]"), lambda match: "\\" + unicodedata.name(match.group()).split()[-1].lower() + " "),
    (re.compile(r"(?<=\d)\s*[xX]\s*(?=10\s*\^)"), r"\\cdot "),
    (re.compile(r"\$"), ""),
)


def require() -> None:
    """Raises `InputError` if math-verify isn't installed."""
    if importlib.util.find_spec("math_verify") is None:
        raise InputError("grading mathematics needs the library math-verify: pip install 'internvl_jax[rl]'")


def load() -> None:
    """Imports the library, which takes most of a second."""
    require()
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns in every process that its time-outs are off
    importlib.import_module("math_verify")


def is_mathematical(text: str) -> bool:
    """Worth parsing. Words are not: the library would read `red` as e * r * d, which equals `der`."""
    return bool(_MATHEMATICAL.search(text)) and not _WORD.search(_COMMAND.sub(" ", text)) and not _CHINESE.search(text)


def equal(given: str, truth: str) -> bool:
    """Do two expressions, LaTeX or nearly so, mean the same? What can't be parsed, or is too large, equals nothing.

    Raises:
      InputError: math-verify isn't installed.
    """
    if not all(is_mathematical(text) and _is_tame(text) for text in (given, truth)):
        return False
    if sorted(_DROPPED.findall(given)) != sorted(_DROPPED.findall(truth)):
        return False
    load()
    from math_verify import verify

    a, b = map(_parsed, _with_cases(given, truth))
    if a and b and _is_no_value(a[0], b[0]):
        return False
    if verify(b, a, allow_set_relation_comp=True, timeout_seconds=None):
        return _is_close(a[0], b[0], "%" in given + truth)
    return bool(a and b) and "I" not in given + truth and _is_same_complex(a[0], b[0])


def is_region(conditions: list[str], region: str) -> bool:
    """Is a union of intervals where one of several conditions holds, each that a variable is above or below a number?

    Raises:
      InputError: math-verify isn't installed.
    """
    if not all(is_mathematical(text) and _is_tame(text) for text in (*conditions, region)):
        return False
    load()
    import sympy
    from math_verify import verify

    *parts, whole = (_parsed(text)[:1] for text in (*conditions, region))
    intervals = [_interval(part[0]) for part in parts if part]
    if len(intervals) < len(parts) or None in intervals:
        return False
    variables = set().union(*(part[0].free_symbols for part in parts))
    return len(variables) == 1 and verify(whole, [sympy.Union(*intervals)], timeout_seconds=None)


def letters(text: str) -> list[str]:
    """Those of variables, sorted."""
    return sorted(letter for letter in _LETTER.findall(text) if letter[0] != "\\")


def renamed(text: str, letter: str, other: str) -> str:
    """The text with another letter for a variable."""
    return _LETTER.sub(lambda match: other if match.group() == letter else match.group(), text)


def _with_cases(*texts: str) -> list[str]:
    """The library takes R for r. Where a formula has both, R gets a letter that no formula has."""
    used = [set(letters(text)) for text in texts]
    both = sorted({letter for own in used for letter in own if letter.isupper() and letter.lower() in own})
    free = sorted(set("abcfghjklmnopqrstuvwxyz") - {letter.lower() for own in used for letter in own})
    other = dict(zip(both, free))
    return [_LETTER.sub(lambda match: other.get(match.group(), match.group()), text) for text in texts]


def _parsed(text: str) -> list:
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig, parse

    if TRIGONOMETRIC.search(text):
        text = _DEGREES.sub(r"(\\frac{\1\\pi}{180})", text)  # the library drops the sign
    for pattern, latex in _AS_LATEX:
        text = pattern.sub(latex, text)
    # Units are none of its business: it takes the m of 2m for one.
    spelling = NormalizationConfig(units=False, malformed_operators=True, nits=True, boxed="none")
    # As a formula, whole: the library would otherwise look for any number within the text.
    target = LatexExtractionConfig(normalization_config=spelling)
    return parse(f"${text}$", [target], fallback_mode="no_fallback", parsing_timeout=None)


def _repeating(whole: str, once: str, again: str) -> str:
    """0.2 with 7 behind it for ever, as a fraction."""
    nines = (10 ** len(again) - 1) * 10 ** len(once)
    return rf"\frac{{{int(whole + once + again) - int(whole + once)}}}{{{nines}}}"


def _is_no_value(given: Any, truth: Any) -> bool:
    """An equation says that its left side, what was asked for, is the right one: (x+y)^2 = 81. But x^2 - 4 = 0 says of
    nothing that it is 0, and 7 = a + c doesn't of 7 that it is a + c."""
    import sympy

    if not isinstance(given, sympy.Eq) or isinstance(truth, sympy.Rel):
        return False
    left, right = given.args
    has_constant = left.is_Add and any(part.is_number for part in left.args) and not left.is_number
    return bool((right == 0 and has_constant) or (left.is_number and not right.is_number))


def _is_same_complex(a: Any, b: Any) -> bool:
    """Two numbers with i for the imaginary unit, which is a variable to the library."""
    import sympy

    if not (isinstance(a, sympy.Expr) and isinstance(b, sympy.Expr)):
        return False
    units = {symbol: sympy.I for symbol in a.free_symbols | b.free_symbols if symbol.name == "i"}
    if not units:
        return False
    a, b = (x.subs(units).evalf() for x in (a, b))
    if not (a.is_number and b.is_number and a.is_finite and b.is_finite):
        return False
    return bool(abs(a - b) <= CLOSE * max(abs(a), abs(b)))


def _interval(condition: Any) -> Any:
    """Where a variable is above a number, below one, or both; None for another condition."""
    import sympy

    if isinstance(condition, sympy.And):
        parts = [_interval(part) for part in condition.args]
        return None if None in parts else sympy.Intersection(*parts)
    if not isinstance(condition, (sympy.Lt, sympy.Le, sympy.Gt, sympy.Ge)):
        return None
    low, high, is_open = condition.lts, condition.gts, isinstance(condition, (sympy.Lt, sympy.Gt))
    if low.is_Symbol and high.is_extended_real:
        return sympy.Interval(-sympy.oo, high, right_open=is_open)
    return sympy.Interval(low, sympy.oo, left_open=is_open) if high.is_Symbol and low.is_extended_real else None


def _is_close(a: Any, b: Any, has_percent: bool) -> bool:
    """Two numbers by their size, 50 % being 50 as well as a half; whatever else the library calls equal stays so."""
    import sympy

    if not (isinstance(a, sympy.Expr) and isinstance(b, sympy.Expr) and a.is_number and b.is_number):
        return True
    a, b = a.evalf(), b.evalf()
    if not (a.is_finite and b.is_finite):
        return True
    others = (b, b / 100, b * 100) if has_percent else (b,)
    return any(abs(a - other) <= CLOSE * max(abs(a), abs(other)) for other in others)


def _is_tame(text: str) -> bool:
    """No tower of powers like 9^9^9, whose digits would fill the memory, and no endless nest of brackets."""
    depth = deepest = 0
    for bracket in re.finditer(r"[({\[]|[)}\]]", text):
        depth += 1 if bracket.group() in "({[" else -1
        deepest = max(deepest, depth)
    digits = [_digits(match.group()) for match in _POWERS.finditer(text)]
    if _FACTORIAL.search(text) and (_LARGE.search(text) or max(digits, default=0) > 4):
        return False
    return deepest <= DEEPEST and max(digits, default=0) <= MOST_DIGITS and not _HUGE.search(text)


def _digits(tower: str) -> int:
    """How many an integer power has, at most; powers of powers count from the top."""
    base, *exponents = re.findall(r"\d[\d.]*", tower)
    power = 1
    for exponent in reversed(exponents):
        if len(exponent) > 5 or power > 5:
            return MOST_DIGITS + 1
        power = int(exponent) ** power
    return len(base) * power
