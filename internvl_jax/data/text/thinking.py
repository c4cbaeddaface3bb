"""Thinking and answer: how a model family writes them, and how they are read back.

1. As text, thinking stands between <think> and </think> before the answer, in every family, as the released training
   data have it; `split_thinking` takes the two apart.
2. Qwen3 writes this text as it is (`Tags`). GPT-OSS has a channel for each, told by control tokens (`Channels`): text
   becomes channels on the way in, and channels become text on the way out.
"""

import dataclasses
from collections.abc import Sequence

from internvl_jax.data.text.tokenizer import DecodeStream, Tokenizer

THINK, THINK_END = "<think>", "</think>"
# The system text that the models were trained to think with; it takes the place of the template's own.
THINKING_SYSTEM = """You are an AI assistant that rigorously follows this response protocol:

1. First, conduct a detailed analysis of the question. Consider different angles, potential solutions, and reason \
through the problem step-by-step. Enclose this entire thinking process within <think> and </think> tags.

2. After the thinking section, provide a clear, concise, and direct answer to the user's question. Separate the answer \
from the think section with a newline.

Ensure that the thinking process is thorough but remains focused on the query. The final answer should be standalone \
and not reference the thinking section."""
_NOT_SHOWN = ("analysis", "commentary")  # channels; every other one, and none, is the answer


def split_thinking(text: str) -> tuple[str, str]:
    """(thinking, answer) of what an assistant said; thinking that does not end leaves the answer empty."""
    started = text.lstrip()
    if not started.startswith(THINK):
        return "", text
    thinking, _, answer = started.removeprefix(THINK).partition(THINK_END)
    return thinking.strip(), answer.lstrip()


@dataclasses.dataclass(frozen=True)
class Tags:
    """Thinking and answer as one text."""

    answer_head = ""

    def items(self, texts: Sequence[str], tokenizer: Tokenizer) -> list[int | str]:
        """What stands between the head and the end of an assistant's turn: control tokens and strings."""
        del tokenizer
        return [*texts]

    def begin(self, text: str, tokenizer: Tokenizer) -> list[int | str]:
        """The same for a turn that is not at its end: what the speaker says next goes on where the text stops."""
        del tokenizer
        return [text]

    def stream(self, tokenizer: Tokenizer) -> DecodeStream:
        """Reads a turn back, token by token."""
        return tokenizer.decode_stream()


@dataclasses.dataclass(frozen=True)
class Channels:
    """A message in one channel for thinking, if there is any, and one in another for the answer (OpenAI's harmony
    format). The released data code (`internvl3_5_gpt_oss_with_think`) splits and strips the text in the same way."""

    thinking_head: str
    thinking_end: str
    answer_head: str

    def items(self, texts: Sequence[str], tokenizer: Tokenizer) -> list[int | str]:
        """See `Tags.items`."""
        markup = tokenizer.split_special  # for our own strings alone: nobody writes control tokens into a text
        thinking, answer = split_thinking("".join(texts))
        before = [*markup(self.thinking_head), thinking, *markup(self.thinking_end)] if thinking else []
        return [*before, *markup(self.answer_head), answer]

    def begin(self, text: str, tokenizer: Tokenizer) -> list[int | str]:
        """See `Tags.begin`: thinking that does not end leaves its channel open."""
        if not text:
            return []
        if text.lstrip().startswith(THINK) and THINK_END not in text:
            return [*tokenizer.split_special(self.thinking_head), split_thinking(text)[0]]
        return self.items([text], tokenizer)

    def stream(self, tokenizer: Tokenizer) -> "ChannelStream":
        """See `Tags.stream`."""
        return ChannelStream(tokenizer)


class ChannelStream:
    """The text of a turn in channels: thinking between tags, then the answer. `feed` and `finish` as `DecodeStream`.

    What stands before any markup counts as the answer, so a model that writes none is understood.

    Attributes:
      ended: the answer's message is closed; what follows is not part of it.
    """

    def __init__(self, tokenizer: Tokenizer):
        markers = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>")
        self._start, self._channel, self._message, self._end = map(tokenizer.token_id, markers)
        self._tokenizer, self._text = tokenizer, tokenizer.decode_stream()
        self._header: list[int] | None = None  # since its last marker; None outside of headers
        self._thinking = False
        self.ended = False

    def feed(self, token_id: int) -> str:
        """The text that this token completes."""
        if token_id in (self._start, self._channel):
            self._header = []
            return self._text.finish()
        if token_id == self._message:
            name = self._tokenizer.decode(self._header or ())
            self._header = None
            return self._text.finish() + self._enter(thinking=name.strip().startswith(_NOT_SHOWN))
        if token_id == self._end:
            self.ended = not self._thinking
            return self._text.finish()
        if self._header is None:
            return self._text.feed(token_id)
        self._header.append(token_id)
        return ""

    def finish(self) -> str:
        """What is left when no token follows."""
        return self._text.finish()

    def _enter(self, thinking: bool) -> str:
        """The tag between the message before and this one."""
        tags = {(False, True): f"{THINK}\n", (True, False): f"\n{THINK_END}\n\n", (True, True): "\n\n"}
        tag = tags.get((self._thinking, thinking), "")
        self._thinking = thinking
        return tag
