"""A suite's questions, put to a model and scored.

1. `messages` turns a row into a conversation: the wrapper's text, its pictures within their limits of tiles.
2. `answer_suite` writes the model's answers, resuming what was begun; `shown_answer` is what of a response is scored.
3. `score_suite` rates answers that are there, by the suite's rule and, where it helps, a judge.
"""

import dataclasses
import io
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec
from PIL import Image

from internvl_jax.data import images, is_unfinished, split_prediction
from internvl_jax.errors import InputError
from internvl_jax.evaluation.intervals import mean_interval
from internvl_jax.evaluation.suites import box_matching, final_text, suite_prompts
from internvl_jax.evaluation.suites.predictions import Prediction, PredictionFile
from internvl_jax.evaluation.suites.suite import Judge, Rated, Suite
from internvl_jax.evaluation.suites.suite_file import MAGNIFIED, RELEASED_TILES, SuiteFile
from internvl_jax.evaluation.suites.suite_prompts import MARK, Mode
from internvl_jax.evaluation.suites.tsv import Picture, TableRow
from internvl_jax.inference import Answer

Conversation = list[dict[str, Any]]
Ask = Callable[[Iterable[Conversation]], Sequence[Answer]]


@dataclasses.dataclass(frozen=True)
class SuiteResult:
    """What a model scores on a suite.

    Attributes:
      questions: rows that can be asked.
      answered: rows that have an answer: only these are scored.
      interval: 95 %, of the headline.
      truncated: the share of answers that were cut off by their length; None where that is not known of any.
      repeated, unfinished: shares of answers that end in a loop, and within their thinking.
      predictions: by index.
      could_ask: whether there was a judge.
    """

    suite: Suite
    rated: Rated
    questions: int
    answered: int
    interval: tuple[float, float]
    truncated: float | None
    repeated: float
    unfinished: float
    predictions: Mapping[str, Prediction]
    could_ask: bool


def messages(file: SuiteFile, row: TableRow, mode: Mode) -> Conversation:
    """The conversation that asks a question.

    Raises:
      InputError: a picture can't be read.
    """
    pictures = file.pictures(row)
    prompt = suite_prompts.prompt(file.suite, row, len(pictures), mode)
    first, *texts = prompt.question.split(MARK, len(pictures))
    content: list[dict[str, Any]] = [{"type": "text", "text": first}]
    for place, (picture, text) in enumerate(zip(pictures, texts, strict=True)):
        source = _magnified(picture) if prompt.magnified and not place else _source(picture)
        content.append({"type": "image_url", "image_url": {"url": source, "max_dynamic_patch": prompt.limit}})
        content.append({"type": "text", "text": text.removeprefix("\n")})  # a picture brings a line's end of its own
    system = [] if prompt.system is None else [{"role": "system", "content": prompt.system}]
    return [*system, {"role": "user", "content": [part for part in content if part.get("text") != ""]}]


def check_pictures(file: SuiteFile, mode: Mode) -> None:
    """Raises InputError for a suite that can't be asked, before a model is loaded: a picture that can't be read, or a
    video that is not there, or of which the first can't be decoded.
    """
    if not file.suite.has_pictures:
        file.pictures(file.table.rows[0])
        for row in file.table.rows:
            file.clip(row)
    for _ in file.prompts(mode):
        pass


def answer_suite(
    file: SuiteFile,
    mode: Mode,
    out: pathlib.Path,
    ask: Ask,
    settings: Mapping[str, Any],
    batch: int = 128,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Writes the answers of a model, JSONL.

    Args:
      out: the file; what is begun there goes on.
      ask: answers conversations.
      settings: what answers depend on besides the table and the mode.
      batch: how many questions are asked, and answers written, at a time.

    Raises:
      InputError: see `messages`, `PredictionFile.write` and what `ask` raises.
    """
    rows = {row.index: row for row in file.table.rows}

    def answer(indices: Sequence[str]) -> list[Prediction]:
        try:
            found = ask(messages(file, rows[index], mode) for index in indices)  # pictures as they are wanted
        except InputError as error:  # which counts the conversations of this batch
            raise InputError(f"{file.suite.name}, from row {indices[0]} on: {error}") from None
        return [_prediction(file.suite, mode, *pair) for pair in zip(indices, found, strict=True)]

    _write(file, mode, out, answer, settings, batch, progress)


def write_chosen(
    file: SuiteFile,
    mode: Mode,
    out: pathlib.Path,
    chosen: Mapping[str, Answer],
    settings: Mapping[str, Any],
    batch: int,
) -> None:
    """Writes answers that are there (Best-of-N), by index; arguments as in `answer_suite`."""
    answer = lambda indices: [_prediction(file.suite, mode, index, chosen[index]) for index in indices]
    _write(file, mode, out, answer, settings, batch, None)


def _write(
    file: SuiteFile,
    mode: Mode,
    out: pathlib.Path,
    answer: Callable[[Sequence[str]], Sequence[Prediction]],
    settings: Mapping[str, Any],
    batch: int,
    progress: Callable[[int], None] | None,
) -> None:
    known = {**file.known_by(mode), "batch": batch, **settings}
    PredictionFile(out, known).write([row.index for row in file.table.rows], answer, batch, progress)


def shown_answer(suite: Suite, mode: Mode, response: str) -> str:
    """What of a response is scored: all of it but marks of names and boxes, as released; with chains of thought what
    follows the thinking, and of that what is boxed. Of boxes around GUI elements it is the click.
    """
    response = final_text.without_marks(response)
    if mode != "default":
        response = final_text.boxed_content(split_prediction(response)[1])
    return box_matching.click_of_box(response) if suite.kind == "GUI" else response


def reread(suite: Suite, mode: Mode, predictions: Mapping[str, Prediction]) -> dict[str, Prediction]:
    """Predictions with what of them is scored: the official code leaves thinking and boxes in those of its chains of
    thought.
    """
    if mode == "default":
        return dict(predictions)
    found = {}
    for index, each in predictions.items():
        whole = each.response or each.prediction
        shown = shown_answer(suite, mode, whole)
        found[index] = msgspec.structs.replace(each, prediction=shown, response="" if shown == whole else whole)
    return found


def score_suite(file: SuiteFile, predictions: Mapping[str, Prediction], judge: Judge | None) -> SuiteResult:
    """Rates answers.

    Raises:
      InputError: no rule is built for the suite, an answer is to no row, or there are none.
    """
    suite, predictions = file.suite, file.named(predictions)
    texts = {index: each.prediction for index, each in predictions.items()}
    answers = file.predicted(texts, {index: each.question for index, each in predictions.items() if each.question})
    if suite.rule is None:
        raise InputError(f"{suite.name} can't be scored here: {suite.missing}.")
    rated = suite.rule(suite, answers, judge)
    worth = (row["score"] if "score" in row else row["hit"] for row in rated.rows)
    said = [predictions[answer.index] for answer in answers]
    share = lambda flags: sum(flags) / len(flags)
    known = [each.truncated for each in said if each.tokens]
    whole = [each.response or each.prediction for each in said]
    return SuiteResult(
        suite,
        rated,
        len(file.table.rows),
        len(answers),
        rated.interval or mean_interval(worth),
        share(known) if known else None,
        share([final_text.repeats(text) for text in whole]),
        share([is_unfinished(text) for text in whole]),
        predictions,
        judge is not None,
    )


def _prediction(suite: Suite, mode: Mode, index: str, answer: Answer) -> Prediction:
    shown = shown_answer(suite, mode, answer.text)
    whole = "" if shown == answer.text else answer.text
    return Prediction(index, shown, whole, answer.num_tokens, answer.cut, suite.name)


def _source(picture: Picture) -> bytes | str:
    return picture if isinstance(picture, bytes) else str(picture)


def _magnified(picture: Picture) -> bytes:
    """Twice as large, without loss."""
    image = images.load_image(picture, RELEASED_TILES)
    size = (MAGNIFIED * image.width, MAGNIFIED * image.height)
    buffer = io.BytesIO()
    image.resize(size, Image.Resampling.BILINEAR).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()
