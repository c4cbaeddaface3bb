"""Accuracy on a local benchmark file: one JSON object a line, `{"image": path or null, "question", "answer"}`.

Image paths are relative to the file's folder. A reward of `internvl_jax.grading` says which answers are right; by
default those that equal the expected one, without thinking and surrounding space and regardless of case.
"""

import dataclasses
import json
import os
import pathlib
import time
from collections.abc import Callable, Sequence

from internvl_jax.data import Processor
from internvl_jax.errors import InputError
from internvl_jax.files import read_lines
from internvl_jax.grading import Graders
from internvl_jax.inference import SamplingParams, complete_many
from internvl_jax.models import InternVL

GRADING_SECONDS, GRADING_WORKERS = 10.0, 2


@dataclasses.dataclass(frozen=True)
class Question:
    image: pathlib.Path | None
    text: str
    answer: str

    @property
    def messages(self) -> list[dict]:
        picture = [] if self.image is None else [{"type": "image", "image": str(self.image)}]
        return [{"role": "user", "content": [*picture, {"type": "text", "text": self.text}]}]


def read_questions(path: str | os.PathLike) -> list[Question]:
    """The questions of a benchmark file.

    Raises:
      InputError: the file is missing or empty, or a line isn't as described above; says which.
    """
    path = pathlib.Path(path)
    try:
        lines = read_lines(path)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} can't be read ({error}); give a JSONL file of questions") from None
    questions = [_question(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not questions:
        raise InputError(f"{path} has no questions; give a JSONL file of questions")
    return questions


def evaluate(
    model: InternVL,
    processor: Processor,
    questions: Sequence[Question],
    batch_size: int = 128,
    max_new_tokens: int = 64,
    progress: Callable[[int], None] | None = None,
    grader: str = "exact",
) -> dict[str, float]:
    """accuracy (0 to 1), n (questions), tokens (generated), seconds; greedy answers.

    Raises:
      InputError: no such grader, or a library that it needs is missing.
    """
    start = time.perf_counter()
    # Comparing texts cannot hang; mathematics, and a user's own function, may.
    with Graders(grader, GRADING_SECONDS, 0 if grader == "exact" else GRADING_WORKERS) as graders:
        answers = complete_many(
            model,
            processor,
            (question.messages for question in questions),
            batch_size,
            SamplingParams(max_new_tokens=max_new_tokens),
            progress,
        )
        scores = graders.grade([answer.text for answer in answers], [question.answer for question in questions])
    return {
        "accuracy": sum(score.accuracy for score in scores) / len(scores),
        "n": len(scores),
        "tokens": sum(answer.num_tokens for answer in answers),
        "seconds": round(time.perf_counter() - start, 3),
    }


def _question(path: pathlib.Path, number: int, line: str) -> Question:
    try:
        fields = json.loads(line)
        image, text, answer = fields["image"], fields["question"], fields["answer"]
    except (ValueError, KeyError, TypeError):
        image = text = answer = 0
    if not (isinstance(text, str) and isinstance(answer, str) and (image is None or isinstance(image, str))):
        raise InputError(f'{path}:{number} must be {{"image": path or null, "question": text, "answer": text}}')
    return Question(None if image is None else path.parent / image, text, answer)
