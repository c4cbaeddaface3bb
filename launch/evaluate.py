"""Accuracy of a model on a local benchmark file.

    python -m launch.evaluate --checkpoint=DIR --data=questions.jsonl

The file has a line for every question: {"image": path relative to the file, or null, "question": text, "answer": text}.
An answer is right if it equals the expected one but for case and surrounding space; --grader=answer reads boxed and
announced answers, choices, numbers and formulas instead (extra `rl`). The last line of stdout is JSON: accuracy, n,
tokens, seconds.
"""

import json
import sys

import tqdm
from absl import flags

from internvl_jax.evaluation import evaluate, read_questions
from launch import checkpoint
from launch import main as launcher

_DATA = flags.DEFINE_string("data", None, "benchmark file (JSONL)", required=True)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 128, "questions at a time, at most", lower_bound=1, upper_bound=256)
_MAX_NEW_TOKENS = flags.DEFINE_integer("max_new_tokens", 64, "longest answer, in tokens", lower_bound=1)
_GRADER = flags.DEFINE_string(
    "grader",
    "exact",
    "who says what is right: exact, answer, mmpr, or your own function as package.module:function",
)


def main(argv: list[str]) -> None:
    del argv
    questions = read_questions(_DATA.value)
    model, processor = checkpoint.load()
    # A bar for a terminal; elsewhere a line every half minute.
    bar = tqdm.tqdm(
        total=len(questions),
        unit="question",
        mininterval=0.1 if sys.stderr.isatty() else 30,
        ascii=not sys.stderr.isatty(),
    )

    def show(done: int) -> None:
        bar.update(done - bar.n)

    report = evaluate(model, processor, questions, _BATCH_SIZE.value, _MAX_NEW_TOKENS.value, show, _GRADER.value)
    bar.close()
    print(json.dumps(report))


if __name__ == "__main__":
    launcher.run(main)
