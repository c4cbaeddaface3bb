"""Accuracy on a local benchmark file: one JSON object a line, `{"image": path or null, "question", "answer"}`, and a
"video" if it is about one (8 frames of it are shown).

Paths are relative to the file's folder. A reward of `internvl_jax.grading` says which answers are right; by default
those that equal the expected one, without thinking and surrounding space and regardless of case.
"""

import dataclasses
import json
import os
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from internvl_jax.data import Processor
from internvl_jax.errors import InputError
from internvl_jax.files import whole_file
from internvl_jax.grading import Graders, Score
from internvl_jax.inference import MODEL_THRESHOLDS, Answer, BestOf, SamplingParams, Thresholds, complete_many
from internvl_jax.models import InternVL
from internvl_jax.validation import FilePath, convert, read_lines

GRADING_SECONDS, GRADING_WORKERS = 10.0, 2


@dataclasses.dataclass(frozen=True)
class Question:
    image: pathlib.Path | None
    text: str
    answer: str
    video: pathlib.Path | None = None

    @property
    def messages(self) -> list[dict]:
        shown = [{"type": "image", "image": str(self.image)}] if self.image is not None else []
        shown += [{"type": "video", "video": str(self.video)}] if self.video is not None else []
        return [{"role": "user", "content": [*shown, {"type": "text", "text": self.text}]}]


class _Line(msgspec.Struct):
    """A line of a benchmark file."""

    image: FilePath | None
    question: str
    answer: str
    video: FilePath | None = None


def read_questions(path: str | os.PathLike) -> list[Question]:
    """The questions of a benchmark file.

    Raises:
      InputError: the file is missing or empty, or a line isn't as described above or names a file that is missing; says
        which.
    """
    path = pathlib.Path(path)
    questions = [_question(path, where, fields) for where, fields in read_lines(path)]
    if not questions:
        raise InputError(f"{path} has no questions; give a JSONL file of questions")
    return questions


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Questions with their answers and what these are worth, in the order of the file.

    Attributes:
      seconds: the time that answering and grading took.
      chosen: what each answer was chosen among; empty where there was one alone.
      rated: what each candidate is worth, question by question.
    """

    questions: Sequence[Question]
    answers: Sequence[Answer]
    scores: Sequence[Score]
    seconds: float
    chosen: Sequence[BestOf] = ()
    rated: Sequence[Sequence[Score]] = ()

    def report(self) -> dict[str, float]:
        """accuracy (0 to 1), n (questions), tokens (generated), seconds; where answers were chosen among several also
        greedy (accuracy of the first) and any (the share of questions with a right one).
        """
        n, every = len(self.scores), [[score.accuracy for score in each] for each in self.rated]
        candidates = [answer for found in self.chosen for answer in found.candidates]
        return {
            "accuracy": sum(score.accuracy for score in self.scores) / n,
            **({"greedy": sum(each[0] for each in every) / n, "any": sum(map(max, every)) / n} if every else {}),
            "n": n,
            "tokens": sum(answer.num_tokens for answer in candidates or self.answers),
            "seconds": round(self.seconds, 3),
        }

    def write(self, path: str | os.PathLike) -> None:
        """A JSON object a line for every question: image, question, answer, prediction (with its thinking), right,
        tokens, and error where it could not be graded; where it was chosen among several also best (its number) and
        candidates: text, tokens, right, value (the critic's score or the votes) and steps (the critic's scores of
        them) of each. The file appears when it is whole.
        """
        lines = [
            {
                "image": None if question.image is None else str(question.image),
                **({} if question.video is None else {"video": str(question.video)}),
                "question": question.text,
                "answer": question.answer,
                "prediction": answer.text,
                "right": bool(score.accuracy),
                "tokens": answer.num_tokens,
                **({} if score.error is None else {"error": score.error}),
            }
            for question, answer, score in zip(self.questions, self.answers, self.scores, strict=True)
        ]
        for line, found, rated in zip(lines, self.chosen, self.rated):
            line |= {"best": found.choice.best, "candidates": _candidates(found, rated)}
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as temporary:
            temporary.write_text(text, encoding="utf-8")


def open_graders(grader: str) -> Graders:
    """Who says what is right; InputError for a name that is none, or where a library is missing."""
    # Comparing texts cannot hang; mathematics, and a user's own function, may.
    return Graders(grader, GRADING_SECONDS, 0 if grader == "exact" else GRADING_WORKERS)


def evaluate(
    model: InternVL,
    processor: Processor,
    questions: Sequence[Question],
    batch_size: int = 128,
    sampling: SamplingParams | None = None,
    progress: Callable[[int], None] | None = None,
    grader: str = "exact",
    thresholds: Thresholds = MODEL_THRESHOLDS,
) -> Evaluation:
    """Answers and grades questions; greedily, in at most 64 tokens, unless `sampling` says otherwise.

    Raises:
      InputError: no such grader, or a library that it needs is missing.
    """
    start = time.perf_counter()
    with open_graders(grader) as graders:
        asked = (question.messages for question in questions)
        sampling = sampling or SamplingParams(max_new_tokens=64)
        answers = complete_many(model, processor, asked, batch_size, sampling, progress, thresholds)
        scores = graders.grade([answer.text for answer in answers], [question.answer for question in questions])
    return Evaluation(questions, answers, scores, time.perf_counter() - start)


def grade_chosen(questions: Sequence[Question], chosen: Sequence[BestOf], grader: str, begun: float) -> Evaluation:
    """Grades all candidates for the answers to questions.

    Args:
      begun: `time.perf_counter()` when answering began.

    Raises:
      InputError: as in `evaluate`.
    """
    pairs = [(each.text, question.answer) for question, found in zip(questions, chosen) for each in found.candidates]
    with open_graders(grader) as graders:
        flat = iter(graders.grade([text for text, _ in pairs], [truth for _, truth in pairs]))
    rated = [[next(flat) for _ in found.candidates] for found in chosen]
    answers = [found.answer for found in chosen]
    scores = [each[found.choice.best] for each, found in zip(rated, chosen, strict=True)]
    return Evaluation(questions, answers, scores, time.perf_counter() - begun, chosen, rated)


def _candidates(found: BestOf, rated: Sequence[Score]) -> list[dict[str, Any]]:
    steps = found.choice.steps or [None] * len(rated)
    every = zip(found.candidates, rated, found.choice.values, steps, strict=True)
    return [
        {"text": answer.text, "tokens": answer.num_tokens, "right": bool(score.accuracy), "value": value}
        | ({} if scores is None else {"steps": [*scores]})
        for answer, score, value, scores in every
    ]


def _question(path: pathlib.Path, where: str, fields: Any) -> Question:
    asked = convert(fields, _Line, where)
    image, video = (None if name is None else path.parent / name for name in (asked.image, asked.video))
    for shown in (image, video):
        if shown is not None and not os.path.exists(shown):
            raise InputError(f"{where}: {shown} does not exist; names are relative to the folder of {path.name}")
    return Question(image, asked.question, asked.answer, video)
