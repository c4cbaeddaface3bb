"""Thinking mode, defined once: how it is asked for and switched, how families write it, how it is read back.

1. As text, thinking stands between <think> and </think> before the answer, in every family, as the released training
   data have it. `split_thinking` takes the two apart as a reader does who sees the text grow; `split_prediction` takes
   apart what is evaluated, as VLMEvalKit does. `grading.answers` has the rule of rewards, the latter's but that an
   unfinished thought is no answer; tests hold them together.
2. It is asked for by a system text (`THINKING_SYSTEM`) and, as a hard switch, by how the answer begins (`begun`): with
   thinking, or behind an empty thought. Answers are drawn as `THINKING_SAMPLING` says, up to `THINKING_TOKENS`.
3. Qwen3 writes this text as it is (`Tags`). GPT-OSS has a channel for each, told by control tokens (`Channels`): text
   becomes channels on the way in, and channels become text on the way out.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

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
ThinkingSwitch = Literal["on", "off", "auto"]
# The release's guide, with VLMEvalKit's top_p and longest answer for the thinking mode.
THINKING_SAMPLING = {"temperature": 0.6, "top_p": 0.95}
THINKING_TOKENS = 65_536
_BEGUN: dict[ThinkingSwitch, str] = {"auto": "", "on": f"{THINK}\n", "off": f"{THINK}\n\n{THINK_END}\n\n"}
_NOT_SHOWN = ("analysis", "commentary")  # channels; every other one, and none, is the answer


def begun(switch: ThinkingSwitch) -> str:
    """How an answer begins, in this project's text: 'on' with thinking, 'off' behind it, 'auto' as the model likes."""
    return _BEGUN[switch]


def is_unfinished(text: str) -> bool:
    """Whether an answer is thinking that did not come to its end."""
    return text.lstrip().startswith(THINK) and THINK_END not in text


def split_prediction(text: str) -> tuple[str, str]:
    """(thinking, prediction) of a whole answer, for evaluation: what follows the last </think>, and what comes before.

    Without an end all is the prediction. Source: VLMEvalKit's SPLIT_THINK at e8e78f05, which leaves both tags in the
    thinking unless each stands there once.
    """
    before, ended, prediction = text.rpartition(THINK_END)
    if not ended:
        return "", text
    once = before.count(THINK) == 1 and THINK_END not in before
    return (before.partition(THINK)[2].strip() if once else f"{before}{ended}".strip()), prediction.strip()


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
