"""Best-of-N over many questions: first all candidates, then the choices among them; each is a file that resumes.

The two are apart so that the model that answers need not be there any more when a critic judges.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from internvl_jax.data import Messages
from internvl_jax.errors import InputError
from internvl_jax.evaluation.suites.predictions import PredictionFile
from internvl_jax.inference import Answer, BestOf, Chooser, Selection
from internvl_jax.validation import convert, read_lines

AskGroups = Callable[[Sequence[Messages]], Sequence[Sequence[Answer]]]


class CandidateText(msgspec.Struct, omit_defaults=True):
    """A candidate, how many tokens it took, and whether it may have no more."""

    text: str
    tokens: int
    cut: bool = False


class CandidateLine(msgspec.Struct):
    """The candidates for a question, in the order in which they were drawn."""

    index: str
    candidates: list[CandidateText]


class ChoiceLine(msgspec.Struct):
    """The choice among the candidates for a question, see `inference.Selection`."""

    index: str
    best: int
    values: list[float]
    steps: list[list[float]]


@dataclasses.dataclass(frozen=True)
class BestOfFiles:
    """Where candidates and choices are written: STEM.candidates.jsonl and STEM.choices.jsonl.

    Attributes:
      stem: path and beginning of their names.
      indices: of all questions.
      messages: the conversation that puts the question of an index, made as it is wanted.
      settings: what the questions and how they are put depend on.
      batch: how many questions are asked, and lines written, at a time.
    """

    stem: pathlib.Path
    indices: Sequence[str]
    messages: Callable[[str], Messages]
    settings: Mapping[str, Any]
    batch: int

    def answered(self, settings: Mapping[str, Any]) -> bool:
        """Whether all candidates are there; `settings` and errors are those of `answer`."""
        file = self._file("candidates", settings)
        file.claim()
        return file.path.exists()

    def answer(
        self, ask: AskGroups, settings: Mapping[str, Any], progress: Callable[[int], None] | None = None
    ) -> None:
        """Writes the candidates that are missing.

        Args:
          ask: gives the candidates for each of several conversations.
          settings: what else they depend on.
          progress: called with the number of questions that have theirs.

        Raises:
          InputError: see `PredictionFile.write`.
        """

        def lines(indices: Sequence[str]) -> list[CandidateLine]:
            groups = ask([self.messages(index) for index in indices])
            texts = ([CandidateText(each.text, each.num_tokens, each.cut) for each in group] for group in groups)
            return [CandidateLine(index, group) for index, group in zip(indices, texts, strict=True)]

        self._file("candidates", settings).write(self.indices, lines, self.batch, progress)

    def choose(
        self, choose: Chooser, settings: Mapping[str, Any], progress: Callable[[int], None] | None = None
    ) -> None:
        """Writes the choices that are missing; arguments as in `answer`."""
        candidates = self._candidates()

        def lines(indices: Sequence[str]) -> list[ChoiceLine]:
            chosen = [choose(self.messages(index), [each.text for each in candidates[index]]) for index in indices]
            return [
                ChoiceLine(index, each.best, [*each.values], [[*scores] for scores in each.steps])
                for index, each in zip(indices, chosen, strict=True)
            ]

        self._file("choices", settings).write(self.indices, lines, self.batch, progress)

    def read(self) -> dict[str, BestOf]:
        """What was chosen, by index.

        Raises:
          InputError: a file is missing or damaged, or has other questions.
        """
        candidates, path = self._candidates(), self._path("choices")
        found = {}
        for where, line in read_lines(path):
            each = convert(line, ChoiceLine, where)
            group = candidates.get(each.index, [])
            if not 0 <= each.best < len(group) == len(each.values):
                raise InputError(f"{where} is a choice among other candidates; remove {path} to choose anew")
            choice = Selection(each.best, tuple(each.values), tuple(map(tuple, each.steps)))
            found[each.index] = BestOf(tuple(Answer(one.text, one.tokens, (), one.cut) for one in group), choice)
        return found

    def _candidates(self) -> dict[str, list[CandidateText]]:
        lines = [convert(line, CandidateLine, where) for where, line in read_lines(self._path("candidates"))]
        return {line.index: line.candidates for line in lines}

    def _file(self, what: str, settings: Mapping[str, Any]) -> PredictionFile:
        return PredictionFile(self._path(what), {"batch": self.batch, **self.settings, **settings})

    def _path(self, what: str) -> pathlib.Path:
        return self.stem.with_name(f"{self.stem.name}.{what}.jsonl")
