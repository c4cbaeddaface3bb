"""Tokens of an answer to text, piece by piece: whole characters only, and never a part of a stop string."""

from collections.abc import Iterable

from internvl_jax.data import Tokenizer


class TextStream:
    """Feed tokens, get the text that is certain so far; the joined pieces are the answer.

    Attributes:
      stopped: a stop string was found; what follows it is not part of the answer.
    """

    def __init__(self, tokenizer: Tokenizer, stop_strings: Iterable[str] = ()):
        self._stream = tokenizer.decode_stream()
        self._stops = tuple(stop_strings)
        self._held = ""
        self.stopped = False

    def feed(self, token: int) -> str:
        """The text that this token makes certain; '' while a character or a stop string may still be growing."""
        return "" if self.stopped else self._release(self._stream.feed(token))

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


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
