"""Tokens of an answer to text, piece by piece: whole characters only, and never a part of a stop string."""

from collections.abc import Iterable

from internvl_jax.data import THINK, THINK_END, Processor


class TextStream:
    """Feed tokens, get the text that is certain so far; the joined pieces are the answer, with the thinking before it.

    Args:
      processor: the one that made the prompt.
      stop_strings: end the answer where one of them begins.
      min_tokens: none of them does that ends within so many tokens.

    Attributes:
      stopped: a stop string was found or the answer's channel closed; what follows is not part of the answer.
    """

    def __init__(self, processor: Processor, stop_strings: Iterable[str] = (), min_tokens: int = 0):
        self._stream = processor.decode_stream()
        self._stops = tuple(stop_strings)
        self._left = min_tokens + 1  # tokens until stop strings count
        self._held = ""
        self.stopped = False

    def begin(self, tokens: Iterable[int]) -> None:
        """Tokens that the prompt has begun the answer with: no part of it, and no stop string ends in them."""
        for token in tokens:
            self._stream.feed(token)

    def feed(self, token: int) -> str:
        """The text that this token makes certain; '' while a character or a stop string may still be growing."""
        if self.stopped:
            return ""
        self._left -= self._left > 0
        text = self._release(self._stream.feed(token))
        if self._stream.ended and not self.stopped:
            text += self._held
            self.stopped, self._held = True, ""
        return text

    def finish(self) -> str:
        """What was held back, once no token follows."""
        if self.stopped:
            return ""
        text = self._release(self._stream.finish())
        text, self._held = text + self._held, ""
        return text

    def _release(self, text: str) -> str:
        text, before = self._held + text, len(self._held)
        # What was held is looked at for those that end behind it; others ended when they did not count yet.
        found = [at for stop in self._stops if (at := text.find(stop, max(0, before - len(stop) + 1))) >= 0]
        if found and not self._left:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        text, self._held = text[: len(text) - keep], text[len(text) - keep :]
        return text


class ThinkingStream:
    """Feed pieces of text that may begin with thinking, get those of the thinking and of the answer; joined they are
    what `split_thinking` makes of the whole.

    Attributes:
      thinking: whether what was fed so far is thinking that goes on.
    """

    def __init__(self) -> None:
        self._held, self._part = "", "start"
        self._begun = False  # whether anything was told of the thinking

    @property
    def thinking(self) -> bool:
        return self._part == "thinking"

    def feed(self, piece: str) -> tuple[str, str]:
        """(thinking, answer) that this piece makes certain."""
        if self._part == "answer":
            return "", piece
        self._held += piece
        thinking = ""
        if self._part == "start":
            started = self._held.lstrip()
            if len(started) < len(THINK) and THINK.startswith(started):  # it may become the tag
                return "", ""
            self._part = "thinking" if started.startswith(THINK) else "answer"
            if self._part == "answer":
                return "", self._take()
            self._held = started.removeprefix(THINK)
        if self._part == "thinking":
            at = self._held.find(THINK_END)
            end = len(self._held) - _overlap(self._held, THINK_END) if at < 0 else at
            thinking = self._tell(end)
            if at < 0:
                return thinking, ""
            self._held, self._part = self._held[len(THINK_END) :], "gap"
        self._held = self._held.lstrip()
        if self._held:
            self._part = "answer"
        return thinking, self._take()

    def finish(self) -> tuple[str, str]:
        """What was held back, once no piece follows."""
        if self._part == "thinking":
            return self._tell(len(self._held)), ""
        return "", self._take()

    def _tell(self, end: int) -> str:
        """Thinking up to here, without the space around it; what follows it stays."""
        text = self._held[:end]
        told = text if self._begun else text.lstrip()
        kept = told.rstrip()
        self._begun = self._begun or bool(kept)
        space = told[len(kept) :] if self._begun else ""
        self._held = ("" if self._held.startswith(THINK_END, end) else space) + self._held[end:]
        return kept

    def _take(self) -> str:
        text, self._held = self._held, ""
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
