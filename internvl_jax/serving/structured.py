"""Answers that follow a JSON schema, a regex or a list of choices: which tokens may come next, by llguidance.

1. `Grammars.compile` makes a `Grammar` of what a request asks for, or refuses it.
2. `Grammar.allow()` gives what `inference.Request.allow` takes: from the tokens of an answer so far to the tokens that
   may follow. Once the answer is complete only stop tokens may.
3. Thinking comes before the constraint, in the markup of the model's family: after "</think>", or in GPT-OSS once the
   final channel begins, the answer follows the grammar. The whole, thinking and markup included, is one grammar.
"""

import functools
import json
import pathlib
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any, Literal

import llguidance
import numpy as np

from internvl_jax.data import THINK_END, Channels, Processor, ThinkingSwitch
from internvl_jax.inference import Vocabulary
from internvl_jax.serving.limits import Limits
from internvl_jax.serving.refusals import Refusal

Kind = Literal["json_schema", "json_object", "regex", "choice"]
_MATCHER = llguidance.LLMatcher
# Work for one token, about 4 ms: it is done while the other rows wait. Errors must not repeat schemas and answers.
_BOUNDS = llguidance.LLParserLimits(step_lexer_fuel=50_000, max_lexer_states=50_000, verbose_errors=False)
_TRIAL = pathlib.Path(__file__).with_name("grammar_trial.py")
_KEPT = 64  # grammars; a client's requests tend to have the same
_AT_ONCE = "start: @body"
# What must follow is written by the model all the same: to force it, the rest of a long text is encoded at every token.
_OPTIONS = '\n%llguidance {"no_forcing": true}'
_DEAD_END, _NOTHING = "NoExtension", "nothing matches it"  # llguidance's word for it, and ours
# Without a bound a small model that has lost the thread writes spaces up to its last token.
_JSON: Any = {"whitespace_pattern": " ?"}


class Grammars:
    """Makes grammars for the tokens of one model; making this takes a second for a vocabulary of 150,000.

    Args:
      processor: tokenizer and template.
      vocabulary: of the engine.
      limits: `schema_chars`, `grammar_seconds` and `prompt_memory` hold.
    """

    def __init__(self, processor: Processor, vocabulary: Vocabulary, limits: Limits):
        self._processor, self._vocabulary, self._limits = processor, vocabulary, limits
        tokens = llguidance.TokenizerWrapper(_Tokens(processor, vocabulary))
        self._tokenizer = llguidance.LLTokenizer(tokens, vocabulary.size, list(vocabulary.stops))
        self._made = functools.lru_cache(_KEPT)(self._make)

    def compile(self, kind: Kind, value: Any = None, thinking: ThinkingSwitch = "auto") -> "Grammar":
        """A grammar; a new one takes a tenth of a second, at most `grammar_seconds`, and is best made in a thread.

        Args:
          kind: 'json_schema' with the schema as an object, 'json_object' with None, 'regex' with a text in the syntax
            of Rust's regex, which all of the answer must match, or 'choice' with a list of texts.
          thinking: as the prompt was made, see `data.PromptSettings`: 'on': the answer begins within thinking; 'off':
            it begins at once, and with 'auto' too: all else being masked, a tag would be far likelier than it is.
            Templates with channels open the answer's own.

        Raises:
          Refusal: it can't be compiled, nothing matches it, or it is too large.
        """
        try:
            return self._made(json.dumps(_body(kind, value, self._limits.schema_chars)), thinking)
        except (ValueError, RecursionError) as error:
            raise _refusal(kind, _reason(str(error))) from None

    def _make(self, body: str, thinking: ThinkingSwitch) -> "Grammar":
        """The grammar of an answer's own part, after what comes before it; ValueError for one that is none."""
        parts = [{"lark_grammar": _AT_ONCE + _OPTIONS}, json.loads(body) | {"name": "body"}]
        self._try(json.dumps({"grammars": parts}))
        parts[0] = {"lark_grammar": self._lead(thinking) + _OPTIONS}
        grammar = Grammar(self._tokenizer, json.dumps({"grammars": parts}), self._vocabulary.stops)
        first = grammar.allow()
        first(())
        if first.failed is not None:
            raise ValueError(first.failed)
        return grammar

    def _try(self, definition: str) -> None:
        """Compiles it where that may be ended; ValueError if it must, or if the grammar is none."""
        seconds, memory = self._limits.grammar_seconds, self._limits.prompt_memory
        command = [sys.executable, "-P", str(_TRIAL), str(seconds), str(memory)]
        tried = subprocess.run(command, input=definition, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        if tried.returncode:
            raise ValueError(f"to compile it takes more than {seconds:g} s or {memory} bytes of memory")
        if tried.stdout:
            raise ValueError(_NOTHING if tried.stdout.startswith(_DEAD_END) else tried.stdout)

    def _lead(self, thinking: ThinkingSwitch) -> str:
        """What comes before the body: rules in llguidance's Lark, from `start` to `@body`."""
        speech = self._processor.template.speech
        if thinking == "off" or (thinking == "auto" and not isinstance(speech, Channels)):
            return _AT_ONCE
        if isinstance(speech, Channels):
            end = f"THOUGHT {self._markup(speech.thinking_end)}"
            more = f"({self._markup(speech.thinking_head)} {end})*"
            answer = f"{more} {self._markup(speech.answer_head)} @body"
            return f"start: {f'{end} {answer}' if thinking == 'on' else answer}\nTHOUGHT: /(?s:.*)/"
        end = re.escape(THINK_END).replace("/", r"\/")
        return f"start: thought space @body\nthought[lazy]: /(?s:.*){end}/\nspace: /\\s{{0,4}}/"

    def _markup(self, text: str) -> str:
        """The project's own markup as Lark: control tokens by number, the rest as strings."""
        items = self._processor.tokenizer.split_special(text)
        return " ".join(json.dumps(item) if isinstance(item, str) else f"<[{item}]>" for item in items)


class Grammar:
    """What answers must look like; `allow` gives a fresh reader of it."""

    def __init__(self, tokenizer: llguidance.LLTokenizer, definition: str, stops: Sequence[int]):
        self._start = _MATCHER(tokenizer, definition, log_level=0, limits=_BOUNDS)
        self._words = -(-tokenizer.vocab_size // 32)
        self._stops = stops

    def allow(self, answers: int = 1) -> "Allow":
        """What `inference.Request.allow` takes, for a request with so many answers; it is used in one thread.

        Such a request can't have `min_tokens`: before it has so many, nothing may follow a complete answer.
        """
        return Allow(self._start.deep_copy, self._stops, self._words, answers)


class Allow:
    """From an answer's tokens so far to those that may follow: int32 [V / 32 rounded up], 32 tokens to a number, the
    least bit first.

    It may be asked again for the same tokens, for fewer, or for another answer's: as many answers as there are have a
    reader that has got as far as they have, and any other begins anew.

    Attributes:
      failed: why it gave up and allowed an answer's end that doesn't follow the grammar; None if it hasn't.
    """

    def __init__(self, begin: Callable[[], llguidance.LLMatcher], stops: Sequence[int], words: int, answers: int):
        self._begin, self._ends, self._answers = begin, frozenset(stops), answers
        bits = np.zeros(words * 32, np.uint8)
        bits[list(stops)] = 1
        self._stops = np.packbits(bits, bitorder="little").view("<i4")
        self._readers: list[_Reader] = []
        self.failed: str | None = None

    def __call__(self, tokens: Sequence[int]) -> np.ndarray:
        answer = [int(token) for token in tokens]
        if answer and answer[-1] in self._ends:
            return self._stops  # it is over, also where stop tokens are told not to end it
        reader = self._reader(answer)
        if not reader.read(answer):
            return self._fail(reader.matcher.get_error() or "a token doesn't follow it")
        allowed = np.frombuffer(reader.matcher.compute_bitmask(), "<i4")
        if reader.matcher.is_error() or not allowed.any():
            reason = reader.matcher.get_error()
            return self._fail(_NOTHING if reason.startswith(_DEAD_END) else reason)
        return allowed

    def _reader(self, answer: list[int]) -> "_Reader":
        fitting = [reader for reader in self._readers if answer[: len(reader.tokens)] == reader.tokens]
        if fitting:
            reader = max(fitting, key=lambda each: len(each.tokens))
            self._readers.remove(reader)
        else:
            reader = _Reader(self._begin())
            del self._readers[self._answers - 1 :]
        self._readers.insert(0, reader)
        return reader

    def _fail(self, reason: str) -> np.ndarray:
        self.failed = self.failed or reason
        return self._stops


class _Reader:
    """How far an answer has been read."""

    def __init__(self, matcher: llguidance.LLMatcher):
        self.matcher = matcher
        self.tokens: list[int] = []

    def read(self, answer: list[int]) -> bool:
        """Whether an answer that begins with what has been read follows the grammar so far."""
        more = answer[len(self.tokens) :]
        self.tokens = answer
        return not more or self.matcher.consume_tokens(more)


class _Tokens:
    """A vocabulary as llguidance takes it: the bytes of every token, and which are no text.

    Image tokens and whatever ends an answer are no text, whatever the tokenizer's files say.
    """

    bos_token_id = None

    def __init__(self, processor: Processor, vocabulary: Vocabulary):
        names = {token: name for name, token in processor.tokenizer.added_tokens.items()}
        self.tokens = [processor.tokenizer.bytes_of(token) for token in range(vocabulary.size)]
        control = {token for token in names if not self.tokens[token]}
        self.special_token_ids = sorted(control | {*vocabulary.banned, *vocabulary.stops})
        for token in self.special_token_ids:
            self.tokens[token] = names.get(token, f"<{token}>").encode()
        self.eos_token_id = vocabulary.stops[0]

    def __call__(self, text: str | bytes) -> list[int]:
        """Tokens of a text, which llguidance asks for where it forces text: grammars here don't let it."""
        raise NotImplementedError


def _body(kind: Kind, value: Any, most: int) -> dict[str, Any]:
    """The grammar of the answer itself, of at most so many characters, in llguidance's own form."""
    if kind == "json_object":
        text = _MATCHER.grammar_from_json_schema('{"type": "object"}', overrides=_JSON)
    elif kind == "json_schema" and isinstance(value, dict):
        # What llguidance would take from the schema itself are options that change what it means.
        schema = json.dumps({name: part for name, part in value.items() if name != "x-guidance"})
        _check_size(len(schema), most)
        text = _MATCHER.grammar_from_json_schema(schema, overrides=_JSON)
    elif kind == "regex" and isinstance(value, str) and value:
        _check_size(len(value), most)
        text = _MATCHER.grammar_from_regex(value)
    elif kind == "choice" and isinstance(value, list) and value and all(isinstance(each, str) for each in value):
        choices = " | ".join(map(json.dumps, value))
        _check_size(len(choices), most)
        return {"lark_grammar": f"start: {choices}"}
    else:
        raise ValueError("it must be an object, for a regex a text, for choices a list of texts")
    return json.loads(text)["grammars"][0]


def _check_size(size: int, most: int) -> None:
    if size > most:
        raise ValueError(f"it has {size} characters, more than the limit of {most}")


def _reason(text: str) -> str:
    """What llguidance says, with no more than 40 characters of what it repeats."""
    last = re.search(r"^error: (.*)", text, re.MULTILINE)  # regexes: the pattern comes first, indented
    line = last[1] if last else text.strip().partition("\n")[0]
    words = re.match(r"[^'\":]*", line)[0]
    return (words[:80] + line[len(words) :][:40]).rstrip(".")


def _refusal(kind: str, reason: str) -> Refusal:
    what = {"json_schema": "a JSON schema", "json_object": "JSON", "regex": "a regex", "choice": "a choice"}[kind]
    return Refusal(400, f"the answer can't be made to follow {what}: {reason}.", "response_format")
