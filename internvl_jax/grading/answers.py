r"""Where the final answer stands in a response.

It is looked for after the thinking, in this order: the last `\boxed{...}`, with those beside it ("`\boxed{1}` and
`\boxed{2}`"); the last `<answer>...</answer>`; what the last announcement says ("The answer is ..", a heading "Final
answer", "故选B": MMPR's prompts ask for "Final answer: .." and are partly Chinese); the value that ends the last
sentence ("so the length is 5"), or the one formula in it; else all that was said. A "final answer" below a box wins.
"""

import re

from internvl_jax.grading import spelling

THINK, THINK_END = "<think>", "</think>"
MOST_BOXES = 40  # side by side, or announcements: those before are not looked at
LONGEST_SENTENCE = 2000  # characters
_BOX = re.compile(r"\\boxed\s*\{")
_BESIDE = re.compile(
    r"(?:[\s$,;、和与或]|\\[()\[\],; ]|\\q?quad(?![A-Za-z])|\\text\s*\{(?:[^{}]*\s)?(?:and|or)\s*\}|\b(?:and|or)\b"
    r"|[A-Za-z](?:_\{?\w\}?)?\s*=)*"
)
_NEXT_TURN = re.compile(r"(?<=\S)\s*(?:<\|(?:im_start|im_end|endoftext|return)\|>|</s>).*", re.DOTALL)
_FAREWELL = re.compile(  # "I hope this helps!", at the end
    r"(?P<end>[.!?。！*$)}\n])\s*(?:(?:(?:i )?hope (?:this|that|it)(?: explanation| answer| solution)?"
    r" (?:helps|helped|(?:is|was) (?:helpful|useful|correct|right|clear)|makes sense)"
    r"|(?:please )?(?:let me know|feel free)|if you have any)\b[^.!?。！\d$\n]{0,100}"
    r"|(?:希望[^。！\d\n]{0,20}帮助|(?:如果|如|若)[^。！\d\n]{0,10}(?:问题|疑问|需要)|欢迎)[^。！\d\n]{0,30})[^\w$*]*$",
    re.IGNORECASE,
)
LONGEST_FAREWELL = 200  # characters
MOST_FAREWELLS = 3
_BREAK = re.compile(r"</?(?:p|br|div|h[1-6])\s*/?>")
_TAGS = re.compile(r"</?(?:b|i|u|em|strong|span|mark|code)(?:\s[^<>\n]*)?/?>|~~[^~\n]*~~")  # and what is struck out
_TAG = re.compile(r"<answer>((?:(?!</?answer>).)*)</answer>", re.DOTALL | re.IGNORECASE)
_ANNOUNCED = re.compile(
    # "the answer to (a) is", "**Final answer:**", "Correct option: ", "Answer - "; but not "a wrong answer is"
    r"(?<!wrong )(?<!other )(?<!incorrect )(?<!\bno )(?<!\bany )(?<!check the )(?<!verify the )"
    r"(?<!\bif the )(?<!whether the )(?<![a-z])"
    r"(?:answers?(?: choice| option)?|ans|final result|(?:correct|right|best) (?:option|choice)s?)"
    r"(?: (?:to|of|for) [^\n.:;=]{1,80}?|, [^\n.,]{1,30},)?[\s*_`\"'”’)\]]*"
    r"(?:(?<!\w)(?:is|are|(?:would|should|must|will) be)\b"
    r"(?:\s+(?:therefore|thus|then|hence|clearly|definitely|simply|actually|indeed|just)\b)?\s*[:：]?"
    r"|[:：=→]|(?<=\s)[-–—](?=\s)|[-–—](?=[A-H]\b)|(?=\$|\\[(\[]))"
    r"|^[#*_ ]*(?:the |my )?(?:final |correct )*answers?[*_ ]*$|^[#*_ ]*(?:最终|正确|参考)?答案[*_ ]*$"  # a heading
    r"|(?:答案|正确的?选项|正确的)(?:】[:：]?|(?:应该|应|即|就)?(?:是|为|选择?|[:：])[:：]?|不是(?=[^。\n]{1,40}(?:而是|[,，]\s*是)))|(?<![不未可])选(?:择|[:：])?(?=\s*[*$\\(（\[【]*[a-zＡ-Ｚ])|^答[:：]"
    r"|^####(?=[ \t]*[-+$]?\d[\d,.]*$)",
    re.IGNORECASE | re.MULTILINE,
)
_CLOSED = re.compile(r"(?:\*\*|__|[*_`])+(?=\s)")  # **Answer:** B
_FINAL = re.compile(r"final answer", re.IGNORECASE)
_VALUE = re.compile(r"\d|\$|^\W*[A-Za-z]\W*$")  # rather than "in the box"
_NOT = re.compile(r"\s*(?:not\b|不)", re.IGNORECASE)
_NOT_BUT = re.compile(
    r"\s*(?:not\b[^.\n]{1,40}?(?:,?\s+but\s+(?:rather\s+)?|[,;]\s+it(?:\s+is|'s)\s+)|[^。\n]{1,40}?(?:[,，]?\s*而|[,，]\s*)是)",
    re.IGNORECASE,
)
_SET_OFF = re.compile(
    r"(?:\$\$.+?\$\$|\\\[.+?\\\]|\\\(.+?\\\)|\$[^$]+\$|\*\*[^*]+\*\*|__[^_]+__|\*[^*]+\*|`[^`]+`|\"[^\"]+\"|“[^”]+”|'[^']+')",
    re.DOTALL,
)
_ENDS = re.compile(
    r"\s*(?:[.,;:!?)]?\s*\n|[.:!?)]\s|[,;]\s+(?!and\b|or\b)[A-Za-z]|[。，：！？]|[.!]?\s*$|\(|because\b|since\b)"
)
_FULL_STOP = (
    r"\n|[。！？]|(?<!\bDr)(?<!\bMr)(?<!\bMrs)(?<!\bMs)(?<!\bSt)(?<!\.[A-Z])(?<!\\)[.!?]\s+(?=[A-Z\"“*$(\\一-鿿])"
)
_ASIDE = (  # why, and what else it is not
    r"[,，;]?\s+(?:because|since|rather than|instead of)\b|,\s*not\b|[,，]\s*而?不(?:是|选)|[,，;]?因为"
)
_STOP, _SENTENCE = re.compile(_FULL_STOP), re.compile(f"{_FULL_STOP}|{_ASIDE}")
_CLAUSE = re.compile(
    rf"{_ASIDE}|[,，]?(?:当|如果)|[,，]?\s+(?:when|whenever|if|where|while|although|though|unless|given|assuming|provided"
    r"|for which|as (?:the|its?|this|we))\b"
)
_STATES = re.compile(
    r"^[*$(\\]*(?:[-+]?\d|[A-H]\b)|(?:\s(?:is|are|equals)\s+|[是为]|等于)[*(]*(?:[-+$\\(\d]|[A-H]\b)"
    r"|\b[A-H]\b[)*]* is\b|\b(?:choose|select|pick|go with) (?:option |choice )?[(*]*[A-H]\b"
)
_MATHEMATICS = re.compile(r"\$\$.+?\$\$|\\\[.+?\\\]|\\\(.+?\\\)|\$[^$]+\$", re.DOTALL)
_VALUE_IS = re.compile(r".*(?:\s(?:is|are|equals)\s+|[是为]|(?<![没多少])有|等于)((?:[-+$\\(]|\d).*)", re.DOTALL)
_COUNTED = re.compile(  # "there are 12 red apples"
    r"(?:.*\W)?there\s+(?:is|are)\s+(?P<number>\d[\d,]*)\s+(?P<noun>[A-Za-z][A-Za-z '-]*)\W*", re.IGNORECASE | re.DOTALL
)
_TWO_VALUES = re.compile(  # "the width is 2 and the length is 7"
    r"(?:\s(?:is|are|equals)\s+|[是为有]|等于)[-+$\\(\d][^;；]{0,80}?(?:\s(?:and|but|whereas)\s|[;；，、和与及]|,(?!\d{3}))"
    r".*(?:\s(?:is|are|equals)\s+|[是为有]|等于)[-+$\\(\d]",
    re.DOTALL,
)
_DERIVED = re.compile(  # "if x is 2 and y is 3, it is 5"
    r"^\W*(?:(?:so|thus|hence|therefore|then)[\s,]+)?(?:if|when|since|because|given|although|though|as|for|当|如果|因为|由)|[,，;；]\s*(?:and\s+)?(?:so|therefore|thus|hence|then)\b|所以|因此|那么|故",
    re.IGNORECASE,
)
_VALUE_FIRST = re.compile(  # "14, and the width is 2"
    r"([*$(\\]*(?:[-+]?\d(?:[^,;，；\n]|,(?=\d{3}))*?|[A-H])[*$)]*)"
    r"(?:\s*[,;，；](?!\s*(?:[A-H]\b|[-\d$\\(]|(?:or|option|choice)\b|and [A-H\d$\\(-]))"
    r"|\s+(?:and|but|so|as)\s+(?=(?:the|its|this|that|it|we)\b))"
    r".*(?:\b(?:is|are)\b|[是为])",
    re.DOTALL,
)
_PROSE = re.compile(r"\s*(?:[A-Za-z]+\b.*[A-Za-z]{2}|[(*]*[A-H][)*]* is |.*[一-鿿]{3})", re.DOTALL)
_DENIED = re.compile(r"\b(?:not|cannot|neither|nor|whether|(?:check|see|find|test|determine) if)\b|n't\b|[不没]")
_ONE_CLAUSE = re.compile(  # "the car is red", "she left 3 hours ago": one thing said of another
    r"(?!.*(?:[,;:，；：。]|\.\s|n't\b|\b(?:and|or|but|if|whether|when|unless|than|not|cannot|no|none|neither|nobody|nothing"
    r"|never|hardly|few|unlikely|doubts?|wrong|incorrect|false|other|what|who|why|how)\b))"
    r"\W*[A-Za-z](?:(?!\b(?:is|are|was|were)\b).)*?\s(?:(?:is|are|was|were)\s+(?P<said>(?!.*\b(?:is|are|was|were)\b).{2,60})"
    r"|(?<!least )(?<!most )(?<!over )(?<!under )(?<!before )(?<!after )(?<!nearly )(?<!almost )(?<!within )"
    r"(?P<time>\d+ [a-z]+ ago)\W*)",
    re.IGNORECASE,
)
_LIST_MARK = re.compile(
    r"^\s*(?:```\w*\s*\n|\n\s*(?:```\w*\s*\n|[-*•]\s+|[-=_*]{3,}\s*\n))"
)  # or a line below a heading
_CHOSEN = re.compile(  # "so option (B) is correct", "I choose B"
    r"(?:.*\W)?[(*]*([A-H])[)*]* is (?:the )?(?:correct|right|best|final|answer)\b.*"
    r"|[^A-H]*([A-H])(?:选项|项)?是?(?:正确|对)的?\W*"
    r"|.*\b(?:choose|select|pick|go with|[Ii]t is|[Ii]t's|[Ii]t must be) (?:option |choice )?[(*]*([A-H])[)*]*\W*",
    re.DOTALL,
)
_EXPLAINED = re.compile(r"[(*_]*([A-H])[)*_]*[.:。]?\s+(?:because|since|explanation|reason(?:ing)?)\b", re.IGNORECASE)
_YES = re.compile(r"(yes|no),\s", re.IGNORECASE)
_LETTER = re.compile(r"[(\[*_]*[A-Za-z][)\]*_]*[.:]\s")  # "B. Red" is one answer


def after_thinking(response: str) -> str | None:
    """What was said after the thinking; None while that has not ended. A prompt may have opened the thinking."""
    _, ended, said = response.rpartition(THINK_END)
    return None if not ended and response.lstrip().startswith(THINK) else said


def boxed(text: str) -> str | None:
    r"""Content of the last `\boxed{...}`, braces nested, and of those beside it; None if it isn't there or isn't
    closed."""
    contents: list[str] = []
    follows = len(text)  # where the box after this one begins
    for box in reversed([*_BOX.finditer(text)][-MOST_BOXES:]):
        end = _end_of_box(text, box.end())
        if end is None and not contents:
            return None
        if contents and (end is None or end >= follows or not _is_beside(text[end + 1 : follows])):
            break
        content = text[box.end() : end].strip()
        if content not in contents:
            contents.insert(0, content)
        follows = box.start()
    return ", ".join(contents) if contents else None


def final_answer(response: str) -> str | None:
    r"""The final answer of a response, as it was written; None if it has none. What is counted ("there are 12 apples")
    is set as text behind its number, `12\text{ apples}`: it need not be said."""
    said = after_thinking(response)
    if said is None:
        return None
    said = _without_farewell(_TAGS.sub("", _BREAK.sub("\n", _NEXT_TURN.sub("", said))))
    boxes = [*_BOX.finditer(said)]
    if boxes:
        below = _announced(said[boxes[-1].end() :])
        return below if _FINAL.search(said, boxes[-1].end()) and _VALUE.search(below) else boxed(said)
    if tags := _TAG.findall(said):
        return tags[-1].strip() or None
    return _announced(said) or _concluded(said.strip()) or None


def _without_farewell(said: str) -> str:
    """Without what is only polite, which would be the last sentence."""
    for _ in range(MOST_FAREWELLS):
        said = said.rstrip()
        start = max(len(said) - LONGEST_FAREWELL, 0)
        said = said[:start] + _FAREWELL.sub(r"\g<end>", said[start:])
    return said


def predicate(answer: str) -> str | None:
    """What an answer of a single clause says of its subject, as "red" of "The car is red"; None of any other answer,
    and where the clause denies it. A lone letter may be a choice, and is none.
    """
    clause = _ONE_CLAUSE.fullmatch(answer) if len(answer) <= LONGEST_SENTENCE else None
    if clause is None or (clause["time"] and re.search(r"\d", answer[: clause.start("time")])):
        return None  # of two numbers nobody knows which was asked for
    return clause["said"] or clause["time"]


def _announced(said: str) -> str:
    """What the last announcement says; one that says what the answer is not counts where there is no other."""
    stated = [_stated(said[match.end() :]) for match in [*_ANNOUNCED.finditer(said)][-MOST_BOXES:]]
    stated = [text for text in stated if text]
    stated = [text for text in stated if not _NOT.match(text)] or stated
    return stated[-1] if stated else ""


def _end_of_box(text: str, start: int) -> int | None:
    r"""Where the box closes that was opened before `start`. One that ends in `\}` has a stray backslash."""
    end = spelling.closing_brace(text[start:])
    if end is None:
        end = spelling.closing_brace(text[start:].replace("\\", " "))
    return None if end is None else start + end


def _is_beside(between: str) -> bool:
    return len(between) < 60 and bool(_BESIDE.fullmatch(between))


def _stated(text: str) -> str:
    """What an announcement says: up to the end of the sentence, or all that is set off by signs."""
    closed = _CLOSED.match(text)
    text = _LIST_MARK.sub("", text[closed.end() if closed else 0 :]).strip()
    if other := _NOT_BUT.match(text):  # not 12 but 13
        text = text[other.end() :]
    set_off = _SET_OFF.match(text)
    start = set_off.end() if set_off else 0
    if set_off and _ENDS.match(text, start):
        return text[:start]
    letter = _LETTER.match(text)
    end = _SENTENCE.search(text, max(start, letter.end() if letter else 0))
    text = text[: end.start() if end else None].strip()
    if len(text) <= LONGEST_SENTENCE and (first := _VALUE_FIRST.match(text)):
        text = first[1]
    if yes := _YES.match(text):  # yes, it is
        return yes[1]
    text = (None if letter else _value_in(text)) or text
    text = text if text[:1] in ("*", "_") else text.rstrip("*_")
    return text.replace("**", "") if text.count("**") % 2 else text


def _main_clause(sentence: str) -> str:
    """Without its reasons and conditions, whose values are not its own: "It is 14 because AB is 13". Where these come
    first ("If AB is 13, it is 14"), the sentence as it is."""
    for clause in _CLAUSE.finditer(sentence):
        if _STATES.search(sentence, 0, clause.start()):
            return sentence[: clause.start()]
    return sentence


def _value_in(sentence: str) -> str | None:
    """What it says that something is; None if it says nothing of the kind, or that of two things."""
    if len(sentence) > LONGEST_SENTENCE:
        return None
    sentence = _main_clause(sentence)
    value = _VALUE_IS.fullmatch(sentence)
    if value is None or (_TWO_VALUES.search(sentence) and not _DERIVED.search(sentence)):
        return None
    counted = _COUNTED.fullmatch(sentence)  # the noun as one behind a number, as what was counted needn't be said
    return rf"{counted['number']}\text{{ {counted['noun'].strip()}}}" if counted else value[1]


def _concluded(said: str) -> str:
    """What the last sentence says, if it is one of several words about a single value; or a letter, then explained."""
    if explained := _EXPLAINED.match(said):
        return explained[1]
    start = max((match.end() for match in _STOP.finditer(said, 0, max(len(said) - 1, 0))), default=0)
    sentence = said[start:]
    if len(sentence) > LONGEST_SENTENCE:
        return said
    sentence = _main_clause(sentence)
    prose = _MATHEMATICS.sub(" 0 ", sentence)
    if not _PROSE.match(prose) or _DENIED.search(prose):
        return said
    chosen, value = _CHOSEN.fullmatch(sentence), _value_in(sentence)
    if chosen and len(re.findall(r"(?<![A-Za-z'])[A-H](?![A-Za-z'])", sentence)) == 1:
        return chosen[1] or chosen[2] or chosen[3]
    formulas = _MATHEMATICS.findall(sentence)
    return value or (formulas[0] if len(formulas) == 1 else said)
