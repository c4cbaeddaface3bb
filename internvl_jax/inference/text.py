"""Tokens of an answer to text, piece by piece: whole characters only, and never a part of a stop string."""

from collections.abc import Iterable

from internvl_jax.data import THINK, THINK_END, Processor, split_thinking


class TextStream:
    """Feed tokens, get the text that is certain so far; the joined pieces are the answer, with the thinking before it.

    Attributes:
      stopped: a stop string was found or the answer's channel closed; what follows is not part of the answer.
    """

    def __init__(self, processor: Processor, stop_strings: Iterable[str] = ()):
        self._stream = processor.decode_stream()
        self._stops = tuple(stop_strings)
        self._held = ""
        self.stopped = False

    def feed(self, token: int) -> str:
        """The text that this token makes certain; '' while a character or a stop string may still be growing."""
        if self.stopped:
            return ""
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
        text = self._held + text
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        text, self._held = text[: len(text) - keep], text[len(text) - keep :]
        return text


class AnswerStream:
    """Feed pieces of text that may begin with thinking, get those of the answer; see `split_thinking`."""

    def __init__(self) -> None:
        self._held: str | None = ""  # None once the answer has begun

    def feed(self, piece: str) -> str:
        """The part of this piece that belongs to the answer."""
        if self._held is None:
            return piece
        self._held += piece
        start = self._held.lstrip()
        if THINK.startswith(start[: len(THINK)]):  # thinking, or what may become its tag
            answer = split_thinking(start)[1] if THINK_END in start else ""
        else:
            answer = self._held
        if answer:
            self._held = None
        return answer

    def finish(self) -> str:
        """What was held back, once no piece follows."""
        return "" if self._held is None else split_thinking(self._held)[1]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
