"""Whatever a model prefers, its answer follows the grammar: here it takes the tokens that are allowed at random."""

import json
import re
import string
import time
from typing import Literal

import numpy as np
import pydantic
import pytest

from demo import easy_vqa, training_data
from internvl_jax import data
from internvl_jax.inference import Vocabulary
from internvl_jax.serving.limits import Limits
from internvl_jax.serving.refusals import Refusal
from internvl_jax.serving.structured import Grammars

IMAGE = data.ImageConfig(14, 3, 1, 6, True, False, 1_000_000)
LIMITS = Limits(grammar_seconds=0.5)


class Model:
    """Takes allowed tokens at random, often one that ends something if there is one: thoughts, texts, the answer."""

    def __init__(self, processor):
        self.processor, self.vocabulary = processor, Vocabulary.of(processor)
        self.grammars = Grammars(processor, self.vocabulary, LIMITS)
        endings = [
            token for token in range(self.vocabulary.size) if processor.tokenizer.bytes_of(token) in (b'"', b"}", b"]")
        ]
        self.endings = {*endings, *self.vocabulary.stops}
        added = processor.tokenizer.added_tokens
        self.thought = {added[name] for name in ("</think>", "<|end|>") if name in added}

    def bits(self, mask):
        assert mask.dtype == np.int32 and mask.shape == (-(-self.vocabulary.size // 32),)
        ids = np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))
        assert len(ids) and ids[-1] < self.vocabulary.size
        assert not set(ids.tolist()) & set(self.vocabulary.banned)
        return ids

    def answer(self, allow, rng, most=3000):
        """Tokens of an answer, its stop token included."""
        tokens = []
        while len(tokens) < most:
            ids = self.bits(allow(tokens))
            for likely in (self.thought, self.endings):
                near = [token for token in ids if token in likely]
                ids = near if near and rng.random() < 0.4 else ids
            tokens.append(int(rng.choice(ids)))
            if tokens[-1] in self.vocabulary.stops:
                return tokens
        raise AssertionError(f"no end: {self.text(tokens)[-200:]!r}")

    def text(self, tokens):
        stream = self.processor.decode_stream()
        return "".join(map(stream.feed, tokens)) + stream.finish()


@pytest.fixture(scope="module")
def toy():
    """Bytes and what the template needs, nothing else."""
    return Model(data.Processor(IMAGE, data.train_bpe([], 271), data.get_template("internvl2_5")))


@pytest.fixture(scope="module")
def demo():
    tokenizer = training_data.train_tokenizer({0: easy_vqa.questions("test")[:1000]}, 512)
    return Model(data.Processor(IMAGE, tokenizer, data.get_template("internvl2_5")))


@pytest.fixture(scope="module")
def gpt_oss(gpt_oss_files):
    tokenizer = data.Tokenizer.load(gpt_oss_files)
    return Model(data.Processor(IMAGE, tokenizer, data.get_template("internvl3_5_gpt_oss")))


@pytest.fixture(params=["toy", "demo", "gpt_oss"])
def model(request):
    return request.getfixturevalue(request.param)


class Shape(pydantic.BaseModel, extra="forbid"):
    kind: Literal["circle", "square", "Dreieck \u25b3", 'a "quoted" one']
    sides: int = pydantic.Field(ge=0, le=12)
    filled: bool


class Scene(pydantic.BaseModel, extra="forbid"):
    shapes: list[Shape] = pydantic.Field(max_length=3)
    title: str = pydantic.Field(min_length=1, max_length=12)
    weight: float | None


class Tree(pydantic.BaseModel, extra="forbid"):
    name: str = pydantic.Field(pattern="^[a-z]{2,5}[0-9]?$")
    left: "Tree | None"


@pytest.mark.parametrize("thinking", ["off", "on", "auto"])
@pytest.mark.parametrize("shape", [Shape, Scene, Tree])
def test_an_answer_is_json_of_the_schema(model, shape, thinking):
    """216 answers in all, parsed by pydantic, which knows nothing of the grammar."""
    grammar = model.grammars.compile("json_schema", shape.model_json_schema(), thinking)
    for seed in range(8):
        check(model, grammar, thinking, seed, lambda text: shape.model_validate_json(text, strict=True))


def check(model, grammar, thinking, seed, holds):
    allow = grammar.allow()
    begun = model.processor.begin(data.PromptSettings(thinking).begun)
    tokens = model.answer(allow, np.random.default_rng(seed))
    assert allow.failed is None
    thought, text = data.split_thinking(model.text([*begun, *tokens]))
    if thinking == "off":
        assert thought == ""
    holds(text)


@pytest.mark.parametrize("thinking", ["off", "on", "auto"])
def test_an_answer_is_any_json_object(model, thinking):
    grammar = model.grammars.compile("json_object", None, thinking)
    for seed in range(10):
        check(model, grammar, thinking, seed, lambda text: json.loads(text).keys())


REGEXES = [
    "[A-D]",
    r"(yes|no), because [a-z ]{1,30}\.",
    "[12][0-9]{3}-(0[1-9]|1[0-2])-[0-3][0-9]",
    r"^/a/[^/\n]{0,9}/\?$",
    'x\ny "z" \\\\ \u732b{2,4}',
    r"(?i)box\[[0-9]+(,[0-9]+){3}\]",
]


@pytest.mark.parametrize("regex", REGEXES)
@pytest.mark.parametrize("thinking", ["off", "on", "auto"])
def test_an_answer_matches_the_regex(model, regex, thinking):
    grammar = model.grammars.compile("regex", regex, thinking)
    for seed in range(4):
        check(model, grammar, thinking, seed, lambda text: re.fullmatch(regex, text)[0])


CHOICES = [
    "yes",
    "no",
    "yes, but",
    "\u732b \U0001f600",
    'a "b"\n\\c',
    "<|im_end|>",
    "<img>",
    "/x/",
    "e\u0301",
    "</think>",
]


@pytest.mark.parametrize("thinking", ["off", "on", "auto"])
def test_an_answer_is_one_of_the_choices(model, thinking):
    """Also where a choice spells a control token, or is a text that the tokenizer would write another way (NFC)."""
    grammar = model.grammars.compile("choice", CHOICES, thinking)
    said = set()
    for seed in range(30):
        check(model, grammar, thinking, seed, lambda text: said.add(text))
    assert said <= set(CHOICES) and len(said) > 5
    # One may go on where another ends.
    allow = model.grammars.compile("choice", ["yes", "yes, but"], "off").allow()
    encode = model.processor.tokenizer.encode
    after = set(model.bits(allow(encode("yes"))).tolist())
    assert {*model.vocabulary.stops, encode(",")[0]} <= after


def test_an_image_token_is_never_allowed(model):
    """Nor one beyond the vocabulary, nor a control token in a text: in answers of every kind, at every place."""
    control = {
        i for name, i in model.processor.tokenizer.added_tokens.items() if not model.processor.tokenizer.bytes_of(i)
    }
    tokens = []
    allow = model.grammars.compile("regex", r"(?s:.*)", "off").allow()
    for _ in range(50):
        ids = set(model.bits(allow(tokens)).tolist())
        assert ids & control <= set(model.vocabulary.stops)
        tokens.append(int(np.random.default_rng(len(tokens)).choice(sorted(ids - control))))


def test_after_the_end_only_stop_tokens(model):
    allow = model.grammars.compile("choice", ["yes"], "off").allow()
    word = model.processor.tokenizer.encode("yes")
    stops = sorted(model.vocabulary.stops)
    assert not set(model.bits(allow([])).tolist()) & set(stops)
    for after in ([], [stops[0]], [stops[0]] * 3, [stops[-1], stops[0], 5]):
        assert model.bits(allow([*word, *after])).tolist()[: len(stops)] == stops or after[-1:] == [5]
    assert allow.failed is None or after[-1:] == [5]


def test_thinking_comes_first_and_cannot_end_the_answer(toy):
    text = lambda words: toy.processor.tokenizer.encode(words)
    for thinking, free in (("on", True), ("auto", False), ("off", False)):
        allow = toy.grammars.compile("choice", ["yes"], thinking).allow()
        ids = set(toy.bits(allow([])).tolist())
        assert not ids & set(toy.vocabulary.stops)
        assert ({*text("q")} <= ids) == free
        assert text("<think>")[0] not in ids or thinking == "on"
    allow = toy.grammars.compile("choice", ["yes"], "on").allow()
    thought = text('Let me see: {"no"} yes.\n')
    spelled = [toy.processor.tokenizer.encode(c)[0] for c in "</think>"]
    for end in (text("</think>"), spelled):  # as its token, or letter by letter
        for space in ("", "\n\n"):
            after = set(toy.bits(allow([*thought, *end, *text(space)])).tolist())
            assert {*text("y")} <= after and not {*text("n")} & after
    assert toy.bits(allow([*thought, *text("</think>\n\nyes")])).tolist() == sorted(toy.vocabulary.stops)


def test_channels_are_opened_before_the_answer(gpt_oss):
    """The analysis channel may come first, once or more; the grammar holds in the final one."""
    markup = gpt_oss.processor.tokenizer.encode_special
    allow = gpt_oss.grammars.compile("choice", ["yes"], "auto").allow()
    (channel,) = markup("<|channel|>")
    assert gpt_oss.bits(allow([])).tolist() == [channel]
    analysis = markup("<|channel|>analysis<|message|>hm, final?<|end|><|start|>assistant")
    final = markup("<|channel|>final<|message|>")
    (y,) = {markup("yes")[0]}
    for before in ([], analysis, analysis * 2):
        assert y in gpt_oss.bits(allow([*before, *final])).tolist()
        assert gpt_oss.bits(allow([*before, *final, *markup("yes")])).tolist() == sorted(gpt_oss.vocabulary.stops)
    inside = gpt_oss.bits(allow(markup("<|channel|>analysis<|message|>hm"))).tolist()
    assert not set(inside) & set(gpt_oss.vocabulary.stops) and markup("<|end|>")[0] in inside
    # Where the prompt has opened the channel already.
    on = gpt_oss.grammars.compile("choice", ["yes"], "on").allow()
    opened = len(markup("<|channel|>analysis<|message|>"))
    assert gpt_oss.bits(on(analysis[opened:])).tolist() == [channel]
    off = gpt_oss.grammars.compile("choice", ["yes"], "off").allow()
    assert y in gpt_oss.bits(off([])).tolist()
    assert allow.failed is on.failed is off.failed is None


def test_it_may_be_asked_anything_again(toy):
    """As the engine does for answers that were put back, and for several answers of one request in turns."""
    grammar = toy.grammars.compile("json_schema", Scene.model_json_schema(), "auto")
    rng = np.random.default_rng(3)
    answers = [toy.answer(grammar.allow(), np.random.default_rng(seed)) for seed in range(4)]
    alone = {}
    for answer in answers:
        allow = grammar.allow()
        alone |= {tuple(answer[:n]): allow(answer[:n]).copy() for n in range(len(answer) + 1)}
    for keep in (1, 2, 4):
        allow = grammar.allow(keep)
        for _ in range(300):
            answer = answers[rng.integers(4)]
            n = int(rng.integers(len(answer) + 1))
            assert np.array_equal(allow(answer[:n]), alone[tuple(answer[:n])])
            assert len(allow._readers) <= keep
        assert allow.failed is None


def test_answers_in_step_are_read_once(toy):
    """So many answers, so many readers: none of them is read from its start again."""
    grammar = toy.grammars.compile("json_schema", Scene.model_json_schema(), "off")
    answers = [toy.answer(grammar.allow(), np.random.default_rng(seed)) for seed in range(4)]
    allow = grammar.allow(4)
    begun = []
    begin, allow._begin = allow._begin, lambda: begun.append(1) or begin()
    for n in range(max(map(len, answers)) + 1):
        for answer in answers:
            if n < len(answer):
                allow(answer[:n])
    assert len(begun) <= 4


def test_tokens_that_do_not_follow_end_the_answer(toy):
    """The engine gets a mask whatever happens: stop tokens, and `failed` says that the answer isn't one."""
    allow = toy.grammars.compile("choice", ["yes"], "off").allow()
    for tokens in ([5], [5, 6], list(b"no"), [toy.vocabulary.banned[0]], [10**6]):
        assert toy.bits(allow(tokens)).tolist() == sorted(toy.vocabulary.stops)
        assert allow.failed


SECRET = "my secret sentence " * 6
DEEP = {}
for _ in range(3000):
    DEEP = {"type": "array", "items": DEEP}
WRONG = [
    ("json_schema", {"type": "nope"}, "Invalid type"),
    ("json_schema", {"not": {}}, "Unimplemented keys"),
    ("json_schema", {"$ref": "https://example.org/a.json"}, "Resource"),
    ("json_schema", {"$ref": "file:///etc/passwd"}, "Resource"),
    ("json_schema", {"$ref": "#/$defs/a"}, "Pointer"),
    ("json_schema", {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}, "nothing matches"),
    ("json_schema", {"enum": []}, "Unsatisfiable"),
    ("json_schema", {"type": "object", "required": [SECRET], "additionalProperties": False}, "Unsatisfiable"),
    ("json_schema", {"type": "string", "format": SECRET}, "Unknown format"),
    ("json_schema", {"type": "string", "pattern": f"(?={SECRET})"}, "look-around"),
    ("json_schema", {SECRET: {}, "not": {}}, "not"),
    ("json_schema", {"type": "string", "minimum": float("nan"), "maximum": 1}, ""),
    ("json_schema", DEEP, ""),
    ("json_schema", {"type": "integer", "multipleOf": 999983}, "more than 0.5 s"),
    (
        "json_schema",
        {"allOf": [{"pattern": f".*{c}.*"} for c in string.ascii_lowercase], "type": "string"},
        "more than",
    ),
    ("json_schema", {"oneOf": [{"type": "string"}, {"minLength": 2}]}, "oneOf"),
    ("json_schema", {"enum": ["x" * 70_000]}, "70015 characters, more than the limit of 65536|characters, more than"),
    ("json_schema", [], "must be an object"),
    ("json_schema", None, "must be an object"),
    ("json_schema", True, "must be an object"),
    ("regex", "", "must be"),
    ("regex", "[", "unclosed"),
    ("regex", f"(?={SECRET})", "look-around"),
    ("regex", rf"({SECRET})\1", "backreferences"),
    ("regex", "(" * 30_000 + ")" * 30_000, "nest"),
    ("regex", "a" * 70_000, "70000 characters"),
    ("regex", 5, "must be"),
    ("regex", "a\ud83d", ""),
    ("choice", [], "must be"),
    ("choice", ["a", 5], "must be"),
    ("choice", "yes", "must be"),
    ("choice", ["x" * 70_000], "characters"),
]


@pytest.mark.parametrize("number", range(len(WRONG)))
def test_what_cannot_be_followed_is_refused(toy, number):
    kind, value, says = WRONG[number]
    with pytest.raises(Refusal, match=says or "can't be made") as refused:
        toy.grammars.compile(kind, value)
    error = refused.value
    assert (error.status, error.param) == (400, "response_format")
    assert len(error.message) < 250 and "\n" not in error.message
    assert not any(SECRET[k : k + 41] in error.message for k in range(len(SECRET) - 40))


EVIL = [
    r"(a|b)*a(a|b){30}",
    r"(?:.{1000}){1000}",
    r"(a*)*b",
    r"(.*[aeiou].{0,40}){8}x",
    r"(.*a.{20}.*b.{20}){30}",
    r"(\w+ ?){1,500}",
    r"a{1000000}",
]


@pytest.mark.parametrize("regex", EVIL)
def test_an_expensive_regex_cannot_hold_up_the_others(demo, regex):
    """Refused, given up, or quick at every token: never the time of a backtracking matcher."""
    start = time.process_time()
    try:
        allow = demo.grammars.compile("regex", regex, "off").allow()
    except Refusal:
        return
    finally:
        assert time.process_time() - start < 5
    rng, tokens, took = np.random.default_rng(0), [], []
    for _ in range(60):
        start = time.process_time()
        mask = allow(tokens)
        took.append(time.process_time() - start)
        tokens.append(int(rng.choice(demo.bits(mask))))
        if tokens[-1] in demo.vocabulary.stops:
            break
    assert sorted(took)[-3:][0] < 0.1  # but for two that the garbage collector may have


def test_a_mask_takes_less_than_a_step(demo):
    """Microseconds here; a step of the smallest model takes a millisecond."""
    grammar = demo.grammars.compile("json_schema", Scene.model_json_schema(), "auto")
    allow, answer = grammar.allow(), demo.answer(grammar.allow(), np.random.default_rng(0))
    took = []
    for n in range(len(answer)):
        start = time.process_time()
        allow(answer[:n])
        took.append(time.process_time() - start)
    assert np.median(took) < 0.001
