"""Whether an answer to MathVista, MathVision or DynaMath is right, as far as that can be told without a judge.

Source of the rules: VLMEvalKit at e8e78f05 (mathvista.py, mathv.py, dynamath.py). It evaluates answers as Python; here
arithmetic alone is. LaTeX is read by latex2sympy2_extended, which math-verify brings (extra `evaluate`).
"""

import ast
import importlib
import importlib.util
import json
import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from internvl_jax.errors import InputError
from internvl_jax.evaluation.suites.options import infer_option

_CLOSE = 1e-6
_DYNAMATH_CLOSE = 0.001
_LONGEST = 200  # characters of a formula; answers are shorter
_BIGGEST = 10_000  # of an exponent; what is larger fills the memory
_PI = "π"
_OPERATORS: dict[type, Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.BitXor: operator.xor,
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}
# What a LaTeX reader works out at once, and would never end with: towers, factorials, large exponents.
_WILD = re.compile(r"!|\^[^^]*\^|\^\s*\{?\s*-?\d{4}|\\(?:prod|sum|int|binom)")


def lettered(choices: Sequence[Any]) -> dict[str, str]:
    """Options by letter, as their positions say."""
    return {chr(ord("A") + place): str(choice) for place, choice in enumerate(choices)}


def typed_value(text: str, answer_type: str) -> int | float | None:
    """MathVista: a number of the asked type, as Python reads it; None for anything else."""
    try:
        if answer_type == "integer":
            return int(text)
        return float(text) if answer_type == "float" else None
    except ValueError:
        return None


def prefetched(prediction: str, answer: str, answer_type: str, choices: Sequence[Any] | None) -> Any:
    """MathVista: what needs no judge, or None. An option that the answer means, right or wrong; of numbers the true one
    alone, and none that is 0.

    Args:
      choices: the options of a multiple choice question, None otherwise.
    """
    if choices is not None:
        return infer_option(prediction, lettered(choices))
    value, true = typed_value(prediction, answer_type), typed_value(answer, answer_type)
    return value if value and value == true else None


def is_extracted_right(result: str, answer: str, answer_type: str, choices: Sequence[Any] | None) -> bool:
    """MathVista: whether an extracted answer (prefetched, or by a judge) is the true one.

    Args:
      answer: the letter for a multiple choice question.
      choices: see `prefetched`.
    """
    if choices is not None:
        return infer_option(result, lettered(choices)) == answer
    value = typed_value(result, answer_type)
    return value is not None and value == typed_value(answer, answer_type)


def same_expression(given: str, true: str) -> bool:
    """MathVision: equal as texts but for case, as arithmetic, or as LaTeX that comes to arithmetic, within 1e-6.

    The official code reads answers where its own variable `a` holds the true value, so an answer A is a right number.
    """
    given, true = given.lower().strip(), true.lower().strip()
    if given == true:
        return True
    for read in (arithmetic, _latex_value):
        wanted = read(true, {})
        if wanted is not None and _close(read(given, {"a": wanted}), wanted):
            return True
    return False


def arithmetic(text: str, names: Mapping[str, float]) -> int | float | None:
    """The value of a Python expression of numbers, and names that have values; None for anything else."""
    if len(text) > _LONGEST:
        return None
    try:
        value = _worked_out(ast.parse(text.strip(), mode="eval").body, names)
    except (SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, RecursionError, MemoryError):
        return None
    return value


def require_latex() -> None:
    """Raises InputError where no reader of LaTeX is installed."""
    if importlib.util.find_spec("latex2sympy2_extended") is None:
        raise InputError("comparing formulas needs the library math-verify: pip install 'internvl_jax[evaluate]'")


def json_of(prediction: str) -> str:
    """DynaMath: from the first brace to the last, without backslashes."""
    start, end = prediction.find("{"), prediction.rfind("}")
    return (prediction[start : end + 1] if 0 <= start < end else prediction).replace("\\", "")


def parse_short(answer: str, answer_type: str) -> tuple[bool, float | str | None]:
    """DynaMath: whether a short answer is of its type, and its value."""
    if answer_type == "float":
        value = _in_pi(answer if answer.isdigit() else answer.split(" ")[0])
        return value is not None, value
    if answer_type != "multiple choice":
        return True, answer
    if len(answer) == 1:
        return True, answer.upper()
    named = [letter for letter in "ABCDE" if letter in answer.upper()]
    return (True, named[0]) if len(named) == 1 else (False, None)


def dynamath(
    prediction: str, answer: str, answer_type: str, judge: Callable[[str], str] | None
) -> tuple[bool, float | str | None, bool]:
    """(parsed, value, right) of a response that is to have its answer in JSON.

    Args:
      judge: reads the answer out of what is no such JSON; None: nobody does.
    """
    text = json_of(prediction)
    parsed, value = parse_short(_short_answer(text), answer_type) if _short_answer(text) else (False, None)
    if not parsed:
        parsed, value = parse_short(text, answer_type)
    if not parsed and judge is not None:
        parsed, value = parse_short(
            judge(f"Free-form answer: {text}\nInstruction: {_INSTRUCTIONS[answer_type]}"), answer_type
        )
    if answer_type == "float":
        true = typed_value(answer, "float")
        is_near = isinstance(value, float) and true is not None and abs(value - true) <= _DYNAMATH_CLOSE
        return parsed, value, is_near
    if answer_type == "multiple choice":
        return parsed, value, value == answer if parsed else answer in text[:3].upper()
    return parsed, value, str(value).lower() in answer.lower()


_INSTRUCTIONS: Mapping[str, str] = {
    "multiple choice": "Output the corresponing choice option, such as 'A', 'B', 'C', 'D', in a single line.",
    "float": "Output a three-digit floating-point number in a single line.",
    "text": "Output a short answer in a single line. Any float numbers in the answer should be formatted as "
    "three-digit floating-point numbers.",
}


def _short_answer(text: str) -> str:
    try:
        # A model writes line breaks into its strings, which JSON forbids; `strict` is about these alone.
        found = json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return ""
    short = found.get("short answer") if isinstance(found, dict) else None
    return short if isinstance(short, str) else ""


def _in_pi(text: str) -> float | None:
    number, pi, _ = text.partition(_PI)
    value = typed_value(number, "float")
    return value * math.pi if pi and value is not None else value


def _close(one: float | None, other: float | None) -> bool:
    try:
        return one is not None and other is not None and abs(one - other) < _CLOSE
    except OverflowError:  # a whole number that is larger than any float, beside a float
        return False


def _worked_out(node: ast.expr, names: Mapping[str, float]) -> int | float:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return node.value
    if isinstance(node, ast.Name) and node.id in names:
        return names[node.id]
    if isinstance(node, ast.UnaryOp):
        return _OPERATORS[type(node.op)](_worked_out(node.operand, names))
    if isinstance(node, ast.BinOp):
        left, right = _worked_out(node.left, names), _worked_out(node.right, names)
        if isinstance(node.op, ast.Pow):
            return _power(left, right)
        return _OPERATORS[type(node.op)](left, right)
    raise ValueError("no arithmetic")


def _power(base: float, exponent: float) -> int | float:
    if abs(exponent) > _BIGGEST or abs(base) > _BIGGEST:
        raise ValueError("too large")
    value = base**exponent
    if isinstance(value, complex):
        raise ValueError("no real number")
    return value


def _latex_value(text: str, names: Mapping[str, float]) -> int | float | None:
    """Of LaTeX whose reading, printed as Python, is arithmetic: roots and constants are not, as released."""
    if len(text) > _LONGEST or _WILD.search(text):
        return None
    require_latex()
    from latex2sympy2_extended import latex2sympy

    try:
        read = str(latex2sympy(text))
    except Exception:  # it raises plain ones, and what SymPy raises
        return None
    return arithmetic(read, names)
