"""Answers in OpenAI's words, whole or in chunks."""

import collections
import dataclasses
import itertools
import time
from collections.abc import Sequence
from typing import Any

from internvl_jax.data import Tokenizer
from internvl_jax.grading import Graders, votes
from internvl_jax.inference import Piece, ThinkingStream, Token, ranking

_VOTE_SECONDS = 1.0  # has no effect: comparing words needs no processes of its own


@dataclasses.dataclass(frozen=True)
class SaidNow:
    """What a few tokens added to an answer.

    Attributes:
      thinking, text: of the answer's two parts.
      tokens: the tokens with a log-probability each, without one that ended the answer.
      end: why the answer ended, or None.
    """

    thinking: str
    text: str
    tokens: list[Token]
    end: str | None


class ChoiceText:
    """One of the answers to a prompt, as it is written.

    Args:
      begun: how the answer begins by the prompt; None where it isn't told apart what is thinking.

    Attributes:
      tokens: how many it has.
      thought: how many of them were thinking.
      end: why it ended; None if it hasn't.
    """

    def __init__(self, begun: str | None):
        self._stream = None if begun is None else ThinkingStream()
        if self._stream is not None and begun:
            self._stream.feed(begun)
        self.tokens = self.thought = 0
        self.end: str | None = None
        self._kept: list[SaidNow] = []

    def read(self, pieces: Sequence[Piece]) -> SaidNow:
        """What these pieces add."""
        thinking, text, tokens = "", "", list[Token]()
        for piece in pieces:
            self.tokens = piece.token.number
            parts = [("", piece.text) if self._stream is None else self._stream.feed(piece.text)]
            self.thought += self._stream is not None and self._stream.thinking
            if piece.token.end != "stop":
                tokens.append(piece.token)
            if piece.answer is not None:
                self.end = piece.end
                if self._stream is not None:
                    parts.append(self._stream.finish())
            thinking += "".join(part[0] for part in parts)
            text += "".join(part[1] for part in parts)
        said = SaidNow(thinking, text, tokens, self.end)
        self._kept.append(said)
        return said

    @property
    def whole(self) -> SaidNow:
        """All that was read so far."""
        kept = self._kept
        tokens = [token for said in kept for token in said.tokens]
        text = "".join(said.text for said in kept)
        return SaidNow("".join(said.thinking for said in kept), text, tokens, self.end)


def most_agreed(choices: Sequence[ChoiceText], count: int) -> list[ChoiceText]:
    """So many of the answers: first those that most others agree with, in the same words but for case."""
    with Graders("exact", _VOTE_SECONDS, workers=0) as graders:
        counts = votes([choice.whole.text for choice in choices], graders)
    return [choices[number] for number in ranking(counts)[:count]]


@dataclasses.dataclass
class Usage:
    """What a request took.

    Attributes:
      prompt: tokens of the prompt, as the model read it.
      image: those of them that are of pictures.
      cached: those of them that had been read before.
      completion: tokens of all answers.
      thought: those of them that were thinking.
    """

    prompt: int = 0
    image: int = 0
    cached: int = 0
    completion: int = 0
    thought: int = 0

    def note(self, token: Token, image_token_id: int) -> None:
        """What the first token tells of the prompt."""
        if not self.prompt:
            self.prompt, self.cached = len(token.seen.tokens_T), token.cached
            self.image = int((token.seen.tokens_T == image_token_id).sum())

    def count(self, choices: Sequence[ChoiceText]) -> "Usage":
        """The same with what was written so far."""
        tokens, thought = (sum(getattr(choice, name) for choice in choices) for name in ("tokens", "thought"))
        return dataclasses.replace(self, completion=tokens, thought=thought)

    def __add__(self, other: "Usage") -> "Usage":
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return Usage(*(ours + theirs for ours, theirs in pairs))

    def values(self) -> dict[str, Any]:
        """As OpenAI names them; `multimodal_tokens` is vLLM's."""
        details = {"cached_tokens": self.cached, "multimodal_tokens": {"image": self.image}}
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": details,
            "completion_tokens_details": {"reasoning_tokens": self.thought},
        }


class ChatReply:
    """Writes the answers to one request.

    Args:
      name: what the id ends with.
      model: the name of the model that was asked for.
      fingerprint: of the model's config.
      tokenizer: the model's.
      logprobs: whether log-probabilities are told.
      reasoning: whether thinking is told.
    """

    kind, chunk, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl-"

    def __init__(self, name: str, model: str, fingerprint: str, tokenizer: Tokenizer, logprobs: bool, reasoning: bool):
        self._head = {"id": self.prefix + name, "created": int(time.time()), "model": model}
        self._tail = {"system_fingerprint": fingerprint}
        self._tokenizer, self._logprobs, self._reasoning = tokenizer, logprobs, reasoning

    def whole(self, choices: Sequence[ChoiceText], usage: Usage) -> dict[str, Any]:
        """All answers."""
        written = [self._written(number, choice.whole) for number, choice in enumerate(choices)]
        return {**self._head, "object": self.kind, "choices": written, "usage": usage.values(), **self._tail}

    def opening(self, number: int) -> dict[str, Any] | None:
        """The chunk that an answer begins with, if there is one."""
        return self._chunk([self._piece(number, {"role": "assistant", "content": ""}, None, None)])

    def piece(self, number: int, said: SaidNow) -> dict[str, Any] | None:
        """A chunk of an answer; None where nothing can be told yet."""
        delta: dict[str, Any] = {"content": said.text} if said.text else {}
        if said.thinking and self._reasoning:
            delta |= {"reasoning": said.thinking, "reasoning_content": said.thinking}
        if not delta and said.end is None and not (self._logprobs and said.tokens):
            return None
        return self._chunk([self._piece(number, delta, self._told(said.tokens), said.end)])

    def closing(self, usage: Usage) -> dict[str, Any]:
        """The chunk that tells what the request took."""
        return {**self._chunk([]), "usage": usage.values()}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {**self._head, "object": self.chunk, "choices": choices, **self._tail}

    def _piece(self, number: int, delta: dict[str, Any], logprobs: Any, end: str | None) -> dict[str, Any]:
        return {"index": number, "delta": delta, "logprobs": logprobs, "finish_reason": end}

    def _written(self, number: int, said: SaidNow) -> dict[str, Any]:
        message = {"role": "assistant", "content": said.text, "refusal": None}
        if said.thinking and self._reasoning:
            message |= {"reasoning": said.thinking, "reasoning_content": said.thinking}
        if said.thinking and not said.text:
            message["content"] = None
        logprobs = self._told(said.tokens)
        return {"index": number, "message": message, "logprobs": logprobs, "finish_reason": said.end}

    def _told(self, tokens: Sequence[Token]) -> dict[str, Any] | None:
        if not self._logprobs:
            return None
        told = [
            {**self._one(token.token, token.logprob), "top_logprobs": [self._one(*best) for best in token.best]}
            for token in tokens
        ]
        return {"content": told, "refusal": None}

    def _one(self, token: int, logprob: float) -> dict[str, Any]:
        data = self._tokenizer.bytes_of(token, skip_special=False)
        return {"token": data.decode(errors="replace"), "logprob": logprob, "bytes": list(data)}


class TextReply(ChatReply):
    """The same for plain completions, where an answer is one text."""

    kind = chunk = "text_completion"
    prefix = "cmpl-"

    def __init__(self, *given: Any, **options: Any):
        super().__init__(*given, **options)
        self._told_chars: collections.Counter[int] = collections.Counter()  # of every answer's tokens

    def opening(self, number: int) -> None:
        """Texts begin with their first piece."""
        return None

    def piece(self, number: int, said: SaidNow) -> dict[str, Any] | None:
        """See `ChatReply.piece`."""
        if not said.text and said.end is None and not (self._logprobs and said.tokens):
            return None
        return self._chunk([self._written(number, said)])

    def _written(self, number: int, said: SaidNow) -> dict[str, Any]:
        logprobs = self._tables(number, said.tokens) if self._logprobs else None
        return {"index": number, "text": said.text, "logprobs": logprobs, "finish_reason": said.end}

    def _tables(self, number: int, tokens: Sequence[Token]) -> dict[str, Any]:
        texts = [self._text(token.token) for token in tokens]
        *offsets, self._told_chars[number] = itertools.accumulate(map(len, texts), initial=self._told_chars[number])
        best = [{self._text(id): logprob for id, logprob in token.best} for token in tokens]
        logprobs = [token.logprob for token in tokens]
        return {"tokens": texts, "token_logprobs": logprobs, "top_logprobs": best, "text_offset": offsets}

    def _text(self, token: int) -> str:
        return self._tokenizer.bytes_of(token, skip_special=False).decode(errors="replace")
