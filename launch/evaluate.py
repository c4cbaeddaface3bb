"""Accuracy of a model on a local benchmark file.

    python -m launch.evaluate --checkpoint=DIR --data=questions.jsonl --out=answers.jsonl

The file has a line for every question: {"image": path relative to the file, or null, "question": text, "answer": text}.
An answer is right if it equals the expected one but for case and surrounding space; --grader=answer reads boxed and
announced answers, choices, numbers and formulas instead (extra `rl`). --out has a line for every question, with what
the model said and whether that is right. The last line of stdout is JSON: accuracy, n, tokens, seconds. --best_of=8
counts the best of eight answers, by their vote or --critic=DIR.
"""

import json

from absl import flags

from internvl_jax.evaluation import open_graders, read_questions
from internvl_jax.files import reserved
from internvl_jax.inference import SamplingParams, Thresholds
from launch import (
    answering,
    best_of_flags,
    needs,
    own_adapter,
    paths,
    question_answers,
    sampling_flags,
    suite_checks,
    suites,
    together,
)

_DATA = flags.DEFINE_string("data", None, "benchmark file (JSONL); with --suite its table (TSV), or their folder")
_OUT = flags.DEFINE_string("out", None, "file (JSONL) of questions, predictions and verdicts, once all are done")
needs.data()
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 128, "questions at a time, at most", lower_bound=1, upper_bound=256)
_LONGEST = flags.DEFINE_integer(
    "max_new_tokens", None, "longest answer; default: 64, with --thinking 8192, a suite's as it has it", lower_bound=1
)


def main(argv: list[str]) -> None:
    del argv
    if suite_checks.is_suite_asked():
        suites.run(_DATA.value, _OUT.value, _LONGEST.value, _BATCH_SIZE.value)
        return
    sampling, thresholds = sampling_flags.sampling(_LONGEST.value, 64), answering.thresholds()
    if not _OUT.value:
        _answer(sampling, thresholds)
        return
    with reserved(_OUT.value):
        paths.check_new(_OUT.value, "out")
        _answer(sampling, thresholds)


def _answer(sampling: SamplingParams, thresholds: Thresholds) -> None:
    open_graders(best_of_flags.GRADER.value)  # an unknown one is told before a model is loaded
    questions = read_questions(_DATA.value)
    answering.check_pictures(sorted({str(question.image) for question in questions if question.image}))
    batch = _BATCH_SIZE.value
    if best_of_flags.is_asked():
        found = question_answers.best_of(questions, _DATA.value, _OUT.value, batch, sampling, thresholds)
    else:
        found = question_answers.once(questions, batch, sampling, thresholds)
    if _OUT.value:
        found.write(_OUT.value)
    print(json.dumps(found.report()))


if __name__ == "__main__":
    together.run(main, own=own_adapter.given)
