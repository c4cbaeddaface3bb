"""When two answers are the same: each kind of value (a choice, a date, a list, a quantity, words) in its way."""

import re
from typing import NamedTuple

from internvl_jax.grading import math, moments, quantities, spelling, units

LONGEST = 2000  # characters of an answer whose meaning is looked at
MOST_ITEMS = 40  # of a list: each is compared with each
_OPTION = re.compile(
    r"(?:(?:the\s+)?(?:(?:final|correct|right)\s+)?(?:option|choice|letter|answer|选项|选择|选|答案)(?:\s+is\b|是|为|选)?\s*:?\s*){0,2}"
    r"(?:[(\[<]\s*(?P<framed>[a-z])\s*[)\]>](?:选项|项)?[.:、]?(?:\s+|(?=[^\x00-\x7f]|\d)|$)"
    r"|(?P<letter>[a-z])(?:\s?(?:选项|项))?(?:[.:)\]]?$|[.:)]\s+|[.:)](?=[^\x00-\x7f]|\d)|\s-\s(?=[a-z]{2})|、\s*|\s+(?=\([^()]{2,}\)$|is\b)))"
    r"(?:is\s+(?:the\s+)?(?:correct|right)?\s*(?:answer|option|choice)?$)?(?P<said>.*)",
    re.IGNORECASE | re.DOTALL,
)
_ARTICLE = re.compile(r"^(?:an?|the)\s+", re.IGNORECASE)
_SEVERAL = re.compile(r"(?:and|or|is|are)\b|[和与及或&,、]")  # what goes on so after a letter is no text of a choice
_OTHER = re.compile(  # another choice behind the text of one
    r"(?:\b(?:and|or)\b|[,;、和与或及])\s*\(?[A-H][).:]|\s\(?[A-H]\)\s|\s[A-H]\.\s"
)
_LETTER = re.compile(r"\(([A-H])\)")
_CHEMICAL = re.compile(r"(?:[A-Z][a-z]?|[()])(?:[A-Z][a-z]?|[()]|\d|_\d|_\{\d+\})+")  # H2O, H_2O
_LETTERS = re.compile(r"[A-Za-z](?:\s*[、,]\s*[A-Za-z])+")
_NAMED = re.compile(r"(?P<name>(?:[^\W\d_]|[\\|(∠△])[^-+*^=<>≤≥≠≈]{0,60}?)\s*=\s*(?P<value>[^=<>≤≥≠≈]+)")
_INEQUALITY = re.compile(r"[<>≤≥≠]|\\(?:[lg](?:e|eq|t|eqslant)|neq?)(?![A-Za-z])")
_MIRRORED = re.compile(r"(?P<value>[^=<>≤≥≠≈]+?)\s*=\s*(?P<name>[A-Za-z](?:_\{?\w+\}?)?)")  # 5 = x
_RELATION = re.compile(f"=|{_INEQUALITY.pattern}")
_ABOUT = re.compile(
    rf"\\(?:approx|simeq)(?![A-Za-z])|[≈≃]"
    rf"|^{spelling.TEXT}?\s*(?:about|approximately|around|roughly|exactly|a total of|大?约|共)(?![a-z])",
    re.IGNORECASE,
)
_EITHER = re.compile(r"\bor\b|或|∨|\\(?:lor|vee)(?![A-Za-z])")
_UNION = re.compile(r"\\cup(?![A-Za-z])|∪")
_DESCENDS = re.compile(r"\s*(>=|>|≥|\\g(?:eqslant|eq|e|t)(?![A-Za-z]))\s*")
_ANY_INTEGER = re.compile(  # behind kπ
    r"(?P<value>.*?)[,;\s]*\(?\s*(?P<letter>[A-Za-z])\s*(?:\\in(?![A-Za-z])|∈)\s*(?:\\mathbb\s*\{?\s*Z\s*\}?|Z|ℤ)\s*\)?"
)
_SUCH_THAT = re.compile(  # {x | x > 2}, whose braces may be taken away already
    r"(?P<open>\\?\{)?\s*(?P<letter>[A-Za-z])\s*(?:(?:\\in(?![A-Za-z])|∈)\s*(?:\\mathbb\s*\{?\s*R\s*\}?|R|ℝ)\s*)?"
    r"(?:\\mid(?![A-Za-z])|\\vert(?![A-Za-z])|\\\||\||:)\s*(?P<condition>.+?)\s*(?(open)\\?\})"
)
_SET = re.compile(r"\\(?:pm|cup|in)(?![A-Za-z])|[±∪]")  # may be several values, though no list
_PIECE = re.compile(
    r"\\?[(\[{]|\\?[)\]}]|[,;、]|(?<=[^\W_])\s?[和与及或]\s?(?=[^\W_])|\\&|\s&\s"
    rf"|{spelling.TEXT}\s*[和与及或]\s*{spelling.TEXT_END}"
    rf"|{spelling.TEXT}?\s*(?:\b(?:and|or)\b|(?<=[\d)])or(?=[A-Z(]))\s*{spelling.TEXT_END}?"
)


class Choice(NamedTuple):
    letter: str
    said: str  # the text that it stands for, '' if that is not given


class Items(NamedTuple):
    items: list[str]
    frame: str  # '()', '[)': what stands in order; '{}' for a set, '' for none


def same(given: str, truth: str) -> bool:
    """Do two final answers say the same? For long ones that means: to the letter."""
    if max(len(given), len(truth)) > LONGEST:
        return given.strip() == truth.strip()
    return _same(spelling.plain(given), spelling.plain(truth))


def _same(a: str, b: str) -> bool:
    """`same` of `plain` texts: the first kind that knows them decides."""
    a, b = (_condition(spelling.unwrapped(text)) for text in (a, b))
    a, b = _for_any_integer(a, b)
    if not a or not b or _squeezed(a) == _squeezed(b):
        return _squeezed(a) == _squeezed(b)
    if _CHEMICAL.fullmatch(a) and _CHEMICAL.fullmatch(b) and re.sub("[_{}]", "", a) == re.sub("[_{}]", "", b):
        return True
    for kind in (_same_choice, _same_value, moments.same, _same_items, quantities.same):
        verdict = kind(a, b)
        if verdict is not None:
            return verdict
    a, b = spelling.words(a), spelling.words(b)
    if math.is_mathematical(a) and math.is_mathematical(b):
        return math.equal(a, b)
    return _said(a) == _said(b)


def _condition(text: str) -> str:
    """Of a set of numbers, what holds for them; c > b > a from the other end."""
    such = _SUCH_THAT.fullmatch(text)
    if such and _INEQUALITY.search(such["condition"]) and such["letter"] in math.letters(such["condition"]):
        text = such["condition"]
    terms, signs = _DESCENDS.split(text)[::2], _DESCENDS.split(text)[1::2]
    if len(signs) < 2 or any(_RELATION.search(term) or _PIECE.search(term) for term in terms):
        return text
    return (
        "".join(term + (" < " if sign in (">", r"\gt") else r" \le ") for term, sign in zip(terms[:0:-1], signs[::-1]))
        + terms[0]
    )


def _for_any_integer(a: str, b: str) -> tuple[str, str]:
    """Without "k is an integer" behind them, and both with the same k."""
    x, y = (_integers(text) for text in (a, b))
    if x and y and x[1] != y[1]:
        if x[1] in math.letters(y[0]) or y[1] in math.letters(x[0]):
            return a, b
        return math.renamed(x[0], x[1], y[1]), y[0]
    return x[0] if x else a, y[0] if y else b


def _integers(text: str) -> tuple[str, str] | None:
    match = _ANY_INTEGER.fullmatch(text)
    return (match["value"], match["letter"]) if match and match["letter"] in math.letters(match["value"]) else None


def _squeezed(text: str) -> str:
    """Without spaces, but for those between words and between digits."""
    return re.sub(r"(?<!\w) | (?!\w)", "", spelling.words(text))


def _said(text: str) -> list[str]:
    """Its words, without an article before them."""
    return [_word(token) for token in _ARTICLE.sub("", text).split()]


def _word(token: str) -> str:
    """Case tells units apart, and nothing else."""
    return units.read(token) or token.casefold()


def _same_choice(a: str, b: str) -> bool | None:
    """B is B whatever text follows it; and the text of a choice is as good as its letter."""
    x, y = _choice(a), _choice(b)
    if x and y:
        return x.letter == y.letter and (not (x.said and y.said) or _same(x.said, y.said))
    if x or y:
        said, other = (x.said, b) if x else (y.said, a)
        return bool(said) and _same(said, other)
    return None


def _choice(text: str) -> Choice | None:
    text = spelling.words(text)
    match = None if _LETTERS.fullmatch(text) else _OPTION.fullmatch(text)
    if match is None or _SEVERAL.match(match["said"]) or _OTHER.search(match["said"]):
        return None
    return Choice((match["framed"] or match["letter"]).casefold(), match["said"].strip())


def _same_value(a: str, b: str) -> bool | None:
    """x = 5 is 5, and 1/3 ≈ 0.33 is 1/3: where only one of two says more than the value."""
    x, y = _value(a, b), _value(b, a)
    return None if (x, y) == (a, b) else _same(x, y)


def _value(text: str, other: str) -> str:
    about = _ABOUT.search(text)
    if about and not _ABOUT.search(other):
        exact = text[: about.start()]
        return exact if re.search(r"\d|\\pi|π", exact) else text[about.end() :]
    mirrored = _MIRRORED.fullmatch(text)
    if mirrored and not _RELATION.search(other) and not math.letters(mirrored["value"]):
        return mirrored["value"]
    named, other_named = _NAMED.fullmatch(text), _NAMED.fullmatch(other)
    one_name = named and other_named and _name(named["name"]) == _name(other_named["name"])
    return named["value"] if named and (one_name or not _RELATION.search(other)) else text


def _same_items(a: str, b: str) -> bool | None:
    x, y = _items(a), _items(b)
    if len(x.items) < 2 and len(y.items) < 2:
        return True if (chosen := _chosen(a)) and chosen == _chosen(b) else None
    if min(len(x.items), len(y.items)) < 2:  # 100,200 may be a list, and so may AC
        x, y = (_items(text, True) if len(own.items) < 2 else own for text, own in ((a, x), (b, y)))
        x, y = _letters(x, y), _letters(y, x)
    joints = [set(re.findall(r"\b(?:and|or)\b", spelling.words(text))) for text in (a, b)]
    if all(joints) and joints[0] != joints[1] and _INEQUALITY.search(a):
        return False
    frames = {x.frame, y.frame}
    if frames == {"{}", "()"} or max(len(x.items), len(y.items)) > MOST_ITEMS:
        return False
    if len(frames) == 2 and frames not in ({"", "()"}, {"", "{}"}):
        return None
    names = sorted((_names(x), _names(y)), key=len)
    for own, region, text, other in ((x, b, a, b), (y, a, b, a)):
        if len(own.items) > 1 and _EITHER.search(spelling.words(text)) and _UNION.search(other):
            return math.is_region(own.items, spelling.words(region))
    if len(x.items) != len(y.items):
        has_pairs = names[1] and any(item[0] == "(" for item in (*x.items, *y.items))  # p = 5, q = 2; .. is (5, 2), ..
        is_interval = min(len(x.items), len(y.items)) == 1 and frames != {""}
        return None if has_pairs or is_interval or _SET.search(a) or _SET.search(b) else False
    if names[0] and names[0] != names[1]:
        return False
    if frames - {"", "{}"} or (not names[0] and len(names[1]) > 1):  # x = 1, y = 2 is 1, 2 in this order
        return all(map(_same, x.items, y.items))
    left = list(y.items)
    for item in x.items:
        found = next((i for i, other in enumerate(left) if _same(item, other)), None)
        if found is None:
            return None if any(_SET.search(text) for text in (a, b)) else False
        del left[found]
    return True


def _items(text: str, every_comma: bool = False) -> Items:
    """The parts of a list, which a comma between thousands doesn't separate unless it is told to."""
    frame, text = "", re.sub(r"^both\s+(?=\S)", "", text)
    if text[0] in "([" and text[-1] in ")]" and _is_closed(text[1:-1]):
        frame, text = text[0] + text[-1], text[1:-1]
    elif text.startswith(r"\{") and text.endswith(r"\}") and _is_closed(text[2:-2]):
        frame, text = "{}", text[2:-2]
    if frame == "[]" and not re.search(r"\d|\\", text):  # no interval
        frame = ""
    items, start, depth = [], 0, 0
    for piece in [] if r"\begin" in text else _PIECE.finditer(text):
        sign = piece.group()
        if sign[-1] in "([{)]}":
            depth += 1 if sign[-1] in "([{" else -1
        elif depth == 0 and (every_comma or sign != "," or not _is_thousands(text, piece.start())):
            items.append(text[start : piece.start()])
            start = piece.end()
    items = [item.strip() for item in (*items, text[start:])]
    items = [item for item in items if item]
    if all(item[0] == "(" for item in items):  # a point counts once
        items = list({_squeezed(item): item for item in items}.values())
    return Items(items, frame)


def _names(own: Items) -> set[str]:
    """Of the values in a list: x and y for x = 1, y = 2; only x for x_1 and x_2."""
    return {re.sub(r"_\{?\w+\}?$", "", _name(named["name"])) for item in own.items if (named := _NAMED.fullmatch(item))}


def _name(text: str) -> str:
    """Of a function, without its variable."""
    return re.sub(r"\([a-z]\)$", "", _squeezed(text))


def _is_closed(text: str) -> bool:
    """No bracket closes that was opened before `text`."""
    depth = 0
    for bracket in re.finditer(r"[()\[\]{}]", text):
        depth += 1 if bracket.group() in "([{" else -1
        if depth < 0:
            return False
    return True


def _is_thousands(text: str, comma: int) -> bool:
    return text[:comma][-1:].isdigit() and bool(re.match(r"\d{3}(?!\d)", text[comma + 1 :]))


def _letters(own: Items, other: Items) -> Items:
    """ABD or ①③, as several choices are written, for a list of them."""
    word = _chosen(own.items[0]) if len(own.items) == 1 else ""
    is_list = word and all(len(_LETTER.sub(r"\1", item)) == 1 for item in other.items)
    return Items(list(word), own.frame) if is_list else own


def _chosen(text: str) -> str:
    """Of several choices written as A C D, (A)(C)(D), ACD or ①③, their letters; '' for something else."""
    word = _LETTER.sub(r"\1", text).replace(" ", "")
    return word if re.fullmatch(r"[A-H]{2,}|[①-⑳]{2,}", word) and list(word) == sorted(set(word)) else ""
