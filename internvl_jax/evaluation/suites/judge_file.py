"""A judge whose replies are kept: a run that stops, or is scored again, asks for none of them twice."""

import hashlib
import json
import os
import pathlib
from collections.abc import Iterator

import msgspec

from internvl_jax.errors import InputError
from internvl_jax.evaluation.suites.judges import Endpoint


class JudgeReply(msgspec.Struct):
    """A reply, and what it is to."""

    key: str
    reply: str


class KeptJudge:
    """An endpoint with the file of its replies, a line each as they come.

    Args:
      endpoint: is asked for what is not there; other judges' replies are not taken for its own.
      path: of the file (JSONL), which may be there.
    """

    def __init__(self, endpoint: Endpoint, path: pathlib.Path):
        self._endpoint, self._path = endpoint, path
        self._known: dict[str, str] | None = None  # read when the first question comes

    def __call__(self, prompt: str, temperature: float = 0.0, /) -> str:
        """See `Endpoint`.

        Raises:
          InputError: as there; or the file is damaged.
        """
        if self._known is None:
            self._known = {verdict.key: verdict.reply for verdict in self._read()}
        asked = json.dumps([self._endpoint.model, temperature, prompt])
        key = hashlib.sha256(asked.encode()).hexdigest()
        if key not in self._known:
            self._known[key] = self._endpoint(prompt, temperature)
            with self._path.open("ab") as file:
                file.write(msgspec.json.encode(JudgeReply(key, self._known[key])) + b"\n")
        return self._known[key]

    def _read(self) -> Iterator[JudgeReply]:
        """What is there, without what a kill cut off, which is taken away."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("ab+") as file:
            file.seek(0)
            *lines, rest = file.read().split(b"\n")
            file.truncate(file.seek(0, os.SEEK_END) - len(rest))
        for number, line in enumerate(lines, 1):
            try:
                yield msgspec.json.decode(line, type=JudgeReply)
            except (msgspec.DecodeError, UnicodeDecodeError):
                raise InputError(f"{self._path}, line {number} is no verdict; remove the file.") from None
