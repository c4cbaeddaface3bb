"""What a benchmark is: a record of its file, its prompts and its rule."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

Kind = Literal["MCQ", "Y/N", "VQA", "VQA_ex_prompt", "GROUNDING", "GUI", "MMERealWorld", "video"]
# The official table: its rows, or one record.
ScoreTable = list[dict[str, Any]] | dict[str, Any]


class Judge(Protocol):
    """A prompt in, an answer out; greedily unless told otherwise."""

    def __call__(self, prompt: str, temperature: float = 0.0, /) -> str: ...


@dataclasses.dataclass(frozen=True)
class Predicted:
    """A question that was answered.

    Attributes:
      index: of its row in the table.
      cells: of its row.
      options: texts by letter.
      text: the answer.
      place: number of its row in the table, from 0.
    """

    index: str
    cells: Mapping[str, str]
    options: Mapping[str, str]
    text: str
    place: int = 0


class Rated(NamedTuple):
    """What answers are worth.

    Attributes:
      score: names and shape are those of the official table.
      rows: for every question (a group of rotations counts as one) its 'index' and 'hit' (0 or 1) or 'score', and what
        the rule saw.
      headline: what the paper's tables print of it: percent, or points of MME and OCRBench.
      judged: how many of them a judge decided.
      interval: 95 %, of the headline; None where that is the mean over all rows in percent.
    """

    score: ScoreTable
    rows: list[dict[str, Any]]
    headline: float
    judged: int = 0
    interval: tuple[float, float] | None = None


Rule = Callable[["Suite", Sequence[Predicted], Judge | None], Rated]


@dataclasses.dataclass(frozen=True)
class Suite:
    """A benchmark.

    Attributes:
      name: of its file, NAME.tsv; prompts and tile limits go by parts of it.
      kind: the class of VLMEvalKit that it belongs to, which says how it is asked.
      rule: scores answers; None where no rule is built.
      md5: the first digits of the file's, "" where none is published.
      judge: whether a language model must read the answers ('required'), is asked where the rule can't tell ('helps'),
        or isn't asked.
      folder: of its pictures in VLMEvalKit's data folder.
      paper: (table, column) of the paper's figure.
      missing: what keeps it from being complete; "" for a suite that recorded answers of the official code hold.
    """

    name: str
    kind: Kind
    rule: Rule | None
    md5: str = ""
    judge: Literal["", "helps", "required"] = ""
    folder: str = ""
    paper: tuple[str, str] = ("", "")
    missing: str = ""

    @property
    def has_pictures(self) -> bool:
        """Whether a row has pictures of its own; it names a video otherwise."""
        return self.kind != "video"
