r"""One spelling for what is printed in several: full-width characters, LaTeX's fonts and spaces, quotes around it all.

`plain` keeps what was set as text (`\text{cm}`) between two marks, because a word there is none of the formula's
variables; `words` takes the marks away.
"""

import re
import unicodedata

TEXT, TEXT_END, _DOLLAR = "\ue000", "\ue001", "\ue002"  # private characters: no answer has them
_FONTS = re.compile(
    r"\\(?:text(?:bf|it|rm|sc|sf|tt|up|normal)?|math(?:rm|bf|it|sf|tt|normal)|mbox|hbox|boldsymbol|bm|underline|emph|operatorname)"
    r"\s*\{((?:[^{}]|\{[^{}]*\})*)\}|\{\s*\\(?:rm|bf|it|sf|tt)\b([^{}]*)\}"
)
_SIZES = re.compile(
    r"\\(?:left|right|[bB]igg?[lr]?)\s*(?=[()\[\]|]|\\[{}|])|\\(?:(?:display|text)style|large|Large|huge|small|bf|it|rm)(?![A-Za-z])|\\(?:text)?color\s*\{\w+\}|\{\}$"
)
_SPACES = re.compile(
    r"(?<!\\)\\[,;: ]|\\(?:q?quad|enspace|thinspace|newline)(?![A-Za-z])|\\[hv]space\*?\s*\{[^{}]*\}|~|\s+"
)
_PAIRS = (
    *(("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("{", "}"), ("[[", "]]")),
    *(("**", "**"), ("__", "__"), ("*", "*"), ("_", "_"), ('"', '"'), ("'", "'"), ("`", "`")),
)
_BEHIND = re.compile(
    rf"(?P<value>[^{TEXT}]*?[^\s^_{TEXT}])\s*"
    rf"(?:(?P<said>(?:\\mu\s*)?{TEXT}[^{TEXT}]*{TEXT_END}\s*(?:\^\s*\{{?-?\d\}}?)?)"
    rf"|(?P<aside>\({TEXT}?[A-Za-z][A-Za-z. -]+{TEXT_END}?\)))"
)
_END = re.compile(rf"\s*(?:\\+|{TEXT}[\s.,;]*{TEXT_END})$")
_RAISED, _LOWERED = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "₀₁₂₃₄₅₆₇₈₉₊₋"
_DIGITS = "0123456789+-"
_CHARACTERS = str.maketrans(
    {chr(code): chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}  # full-width
    | dict.fromkeys("−‐‑–—", "-")
    | dict.fromkeys("“”「」『』", '"')
    | dict.fromkeys("‘’′", "'")
    | dict.fromkeys("【〔《〈", "[")
    | dict.fromkeys("】〕》〉", "]")
    | dict.fromkeys("º˚", "°")
    | dict.fromkeys("✓✔✅\u200b\u200c\u200d\u2060\ufeff" + TEXT + TEXT_END + _DOLLAR)
    | {"\u3000": " ", "。": ".", "µ": "μ", "∶": ":"}
)
_ONE_SIGN = re.compile("[Ⓐ-ⓩ℃℉㍱-㏟]|[\U0001d400-\U0001d7ff]")  # circled letters, units in one character, other fonts
_LATEX = (
    (re.compile(r"(?<![\w)}*])\*\*(?=[^\s*])([^*]+)(?<=\S)\*\*(?![\w({*])"), r"\1"),  # **12** cm, but no power
    (re.compile(r"(?<![\\$])\$(?=[^\s$])([^$]+)(?<=[^\s\\])\$(?![\d$])"), r"\1"),  # $12$ cm, but not $5 to $10
    (re.compile(r"\\\$"), _DOLLAR),
    (re.compile(r"\\(?=\")"), ""),
    (re.compile(r"\\(?:emptyset|varnothing)(?![A-Za-z])"), "∅"),
    (re.compile(r"\\langle(?![A-Za-z])|⟨"), "("),  # a vector
    (re.compile(r"\\rangle(?![A-Za-z])|⟩"), ")"),
    (re.compile(r"\\triangle(?![A-Za-z])\s*"), "△"),
    (re.compile(r"\\angle(?![A-Za-z])\s*"), "∠"),
    (re.compile(r"\\f?box(?:ed)?\s*(?=\{)"), ""),
    (re.compile(r"^(?:negative|minus)\s+(?=\d)", re.IGNORECASE), "-"),
    (re.compile(r"\\!\s*"), ""),
    (re.compile(r"\{,\s*\}"), ","),
    (re.compile(r"\\%"), "%"),
    (re.compile(r"\^\s*\{\s*\\(?:circ|degree)\s*\}|(?:\^\s*\\circ|\\degree)(?![A-Za-z])"), "°"),
    (re.compile(r"(?<=\d)\s*[~∼〜]\s*(?=\d)"), "-"),  # 10~20
    (re.compile(f"[{_RAISED}]+"), lambda match: _digits("^", match.group(), _RAISED)),
    (re.compile(f"[{_LOWERED}]+"), lambda match: _digits("_", match.group(), _LOWERED)),
    (re.compile("[½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞]"), lambda match: r"\frac{" + _one(match.group()).replace("⁄", "}{") + "}"),
    (_ONE_SIGN, lambda match: _one(match.group())),
)
_ENGLISH = (
    *("", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_CHINESE = ("", *"一二三四五六七八九")
_COUNTS = (
    {"zero": "0", "零": "0", "one hundred": "100", "a hundred": "100", "一百": "100"}
    | {word: str(number) for number, word in enumerate(_ENGLISH) if word}
    | {
        f"{ten}{sign}{one}".strip(" -"): str(10 * tens + number)
        for tens, ten in enumerate(_TENS, 2)
        for number, one in enumerate(_ENGLISH[:10])
        for sign in " -"
    }
    | {word: str(number) for number, word in enumerate(_CHINESE) if word}
    | {
        f"{'' if tens == 1 else _CHINESE[tens]}十{one}": str(10 * tens + number)
        for tens in range(1, 10)
        for number, one in enumerate(_CHINESE)
    }
)
_PARTS = re.compile(r"(?P<sign>[负-]?)(?P<whole>\w+)分之(?P<parts>[\w.]+)")  # 三分之一
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
_NUMBERED = {f"{k}{ {1: 'st', 2: 'nd', 3: 'rd'}.get(k, 'th') }": word for k, word in enumerate(_ORDINALS, 1)}
_WORDS = _COUNTS | _NUMBERED


def plain(text: str) -> str:
    r"""Without what says nothing: fonts, spaces, dollar signs, boxes, quotes and stars around it all, a full stop. A
    number up to a hundred that was written in words is one in digits, 1st is first."""
    text = text.translate(_CHARACTERS)
    for pattern, sign in _LATEX:
        text = pattern.sub(sign, text)
    before = None
    while text != before:  # fonts within fonts
        before, text = text, _FONTS.sub(lambda match: TEXT + (match[1] or match[2] or "") + TEXT_END, text)
    text = _SPACES.sub(" ", _SIZES.sub("", text)).strip()
    text = unwrapped(text).replace(_DOLLAR, "$")
    return _WORDS.get(text.casefold(), _fraction(text))


def unwrapped(text: str) -> str:
    """`plain` text, or a part of one, without what is around it all."""
    before = None
    while text != before:  # what is wrapped may be wrapped again: **$12$.**
        before, text = text, _unwrapped_once(text)
    return text


def words(text: str) -> str:
    """What `plain` returned, without its marks."""
    return " ".join(text.replace(TEXT, " ").replace(TEXT_END, " ").split())


def said_behind(text: str) -> tuple[str, str] | None:
    r"""`plain` text cut before the words that end it, if these are set as text or in parentheses: `5\text{ cm}^2`."""
    match = _BEHIND.fullmatch(text)
    return (match["value"], words(match["said"] or match["aside"])) if match else None


def closing_brace(text: str) -> int | None:
    """Where the brace closes that was opened before `text`; an escaped brace is a character. None if nowhere."""
    depth = 1
    for brace in re.finditer(r"\\.|[{}]", text, re.DOTALL):
        depth += {"{": 1, "}": -1}.get(brace.group(), 0)
        if depth == 0:
            return brace.start()
    return None


def _unwrapped_once(text: str) -> str:
    for left, right in _PAIRS:
        if len(text) > len(left + right) and text.startswith(left) and text.endswith(right):
            inner = text[len(left) : -len(right)]
            if closing_brace(inner + right) == len(inner) if right == "}" else left not in inner:
                text = inner.strip()
    if text.startswith(TEXT) and text.endswith(TEXT_END) and text.count(TEXT) == 1:
        text = text[1:-1].strip()
    text = _END.sub("", text)
    return text if text.endswith("..") else text.rstrip(".,;").rstrip()


def _fraction(text: str) -> str:
    match = _PARTS.fullmatch(text)
    if match is None:
        return text
    whole, parts = (_COUNTS.get(count, count) for count in (match["whole"], match["parts"]))
    if not re.fullmatch(r"\d+|百", whole) or not re.fullmatch(r"\d+(?:\.\d+)?", parts):
        return text
    sign = "-" if match["sign"] else ""
    return f"{sign}{parts}%" if whole == "百" else f"{sign}\\frac{{{parts}}}{{{whole}}}"


def _one(sign: str) -> str:
    return unicodedata.normalize("NFKC", sign)


def _digits(mark: str, text: str, alphabet: str) -> str:
    return f"{mark}{{{text.translate(str.maketrans(alphabet, _DIGITS))}}}"
