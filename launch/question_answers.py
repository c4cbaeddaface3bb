"""A model's answers to a plain question file, graded: one to each question, or the best of several."""

import contextlib
import hashlib
import pathlib
import tempfile
import time
from collections.abc import Sequence

from internvl_jax.evaluation import BestOfFiles, Evaluation, Question, evaluate, grade_chosen
from internvl_jax.inference import SamplingParams, Thresholds
from launch import answering, bars, best_of_answers, best_of_flags


def once(questions: Sequence[Question], batch: int, sampling: SamplingParams, thresholds: Thresholds) -> Evaluation:
    """An answer to each question, `batch` of them at a time."""
    with (
        answering.opened() as (model, processor),
        bars.questions(desc="compiling", total=len(questions)) as bar,
    ):

        def show(done: int) -> None:
            bar.set_description("answering", refresh=False)
            bar.update(done - bar.n)

        grader = best_of_flags.GRADER.value
        return evaluate(model, processor, questions, batch, sampling, show, grader, thresholds)


def best_of(
    questions: Sequence[Question],
    data: str,
    out: str | None,
    batch: int,
    sampling: SamplingParams,
    thresholds: Thresholds,
) -> Evaluation:
    """The best of several answers to each question. Candidates and choices are kept beside `out`, for a run that was
    stopped to go on.

    Args:
      data: the file of the questions.
      sampling: as flags have it.
    """
    begun, by_index = time.perf_counter(), {str(number): question for number, question in enumerate(questions)}
    digest = hashlib.sha256(pathlib.Path(data).read_bytes()).hexdigest()
    with contextlib.ExitStack() as stack:
        place = pathlib.Path(out or f"{stack.enter_context(tempfile.TemporaryDirectory())}/answers.jsonl")
        asked = lambda index: by_index[index].messages
        files = BestOfFiles(place.with_suffix(""), list(by_index), asked, {"data": digest}, batch)
        best_of_answers.write([files], best_of_flags.drawn(sampling), thresholds)
        chosen = files.read()
    return grade_chosen(questions, [chosen[index] for index in by_index], best_of_flags.GRADER.value, begun)
