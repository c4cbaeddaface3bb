"""Equivalence of mathematical expressions, through math-verify (extra `rl`).

Parsing a formula takes milliseconds and simplifying one may take for ever: call it where something can end it, as
`grading.pool` does. The library's own time-outs are signals, which only main threads may have; they are switched off.
"""

import importlib
import importlib.util
import logging
import re

from internvl_jax.errors import InputError

_MATHEMATICAL = re.compile(r"[\d\\+\-*/^=<>|(\[√π∞]|\b(?:pi|inf)\b")
_COMMAND = re.compile(
    r"\\(?:begin|end)\{\w+\}|\\[A-Za-z]+|\b(?:sqrt|pi|inf|sin|cos|tan|cot|sec|csc|log|ln|exp|and|or)(?![A-Za-z])"
)
_WORD = re.compile(r"[^\W\d_]{3,}")
_AS_LATEX = (
    (re.compile(r"\\[dt]frac\b"), r"\\frac"),
    (re.compile(r"(?<![\\A-Za-z])pi(?![A-Za-z])"), r"\\pi"),
    (re.compile(r"(?<![\w./])(\d+)\s+(\d+)\s*/\s*(\d+)(?![\w./])"), r"(\1+\\frac{\2}{\3})"),  # 7 3/4
    (re.compile(r"√\s*\(?(\w+)\)?"), r"\\sqrt{\1}"),
    (re.compile(r"\*\*"), "^"),
    (re.compile("°"), r"^\\circ"),
    (re.compile("×|·"), r"\\cdot "),
    (re.compile("÷"), "/"),
    (re.compile("−"), "-"),
    (re.compile("≤"), r"\\le "),
    (re.compile("≥"), r"\\ge "),
    (re.compile("∞"), r"\\infty "),
    (re.compile("∪"), r"\\cup "),
    (re.compile(r"\$"), ""),
)


def require() -> None:
    """Raises `InputError` if math-verify isn't installed."""
    if importlib.util.find_spec("math_verify") is None:
        raise InputError("grading mathematics needs the library math-verify: pip install 'internvl_jax[rl]'")


def load() -> None:
    """Imports the library, which takes most of a second: before the clock of an answer runs."""
    require()
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns in every process that its time-outs are off
    importlib.import_module("math_verify")


def is_mathematical(text: str) -> bool:
    """Worth parsing. Words are not: the library would read `red` as e * r * d, which equals `der`."""
    return bool(_MATHEMATICAL.search(text)) and not _WORD.search(_COMMAND.sub(" ", text))


def equal(given: str, truth: str) -> bool:
    """Do two expressions, LaTeX or nearly so, mean the same? What can't be parsed equals nothing.

    Raises:
      InputError: math-verify isn't installed.
    """
    if not (is_mathematical(truth) and is_mathematical(given)):
        return False
    load()
    from math_verify import LatexExtractionConfig, parse, verify

    def parsed(text: str) -> list:
        for pattern, latex in _AS_LATEX:
            text = pattern.sub(latex, text)
        # As a formula, whole: the library would otherwise look for any number within the text.
        return parse(f"${text}$", [LatexExtractionConfig()], fallback_mode="no_fallback", parsing_timeout=None)

    return verify(parsed(truth), parsed(given), timeout_seconds=None)
