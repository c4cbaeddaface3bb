"""Preference pairs for MPO from a model's own responses.

    python -m launch.make_pairs --checkpoint=DIR --prompts=questions.jsonl --out=pairs

samples answers to every question, grades them, and pairs right ones with wrong ones. With --method=dropout_ntp, for
answers that can't be graded, a response is preferred to one whose second half was written without seeing the picture.
With --method=process it makes what a critic learns from instead: conversations that call each step of a response right
or wrong, by how many of --completions from there end at the right answer; train on them with --config=sft.
Prompts are lines of {"image", "question", "answer"}, a parquet file as MMPR-Tiny, or a meta file of such files.
--out has pairs, meta.json for training, responses, and the accuracy of each question, once all is done; a run that was
stopped goes on with the same command. On a pod the first host alone reads prompts, grades and writes. The last line of
stdout is a JSON summary.
"""

import contextlib
import json

from absl import flags

from internvl_jax.data import open_prompts
from internvl_jax.grading import Graders
from internvl_jax.making import assist, make_pairs
from launch import bars, checkpoint, pair_flags, paths, pod

_PROMPTS = flags.DEFINE_string("prompts", None, "questions: .jsonl, .parquet, or a meta file (.json)", required=True)
_ROOT = flags.DEFINE_string("root", None, "folder of the images, where no meta file says it; default: the file's own")
_OUTSIDE = flags.DEFINE_boolean("allow_outside_root", False, "images may lie outside of the folder that is given")
_OUT = flags.DEFINE_string("out", None, "folder to write", required=True)
_SECONDS = flags.DEFINE_float("grading_seconds", 5.0, "longest time that grading one response may take")
_WORKERS = flags.DEFINE_integer("grading_workers", 2, "processes that grade", 1)


def main(argv: list[str]) -> None:
    paths.check_new(_OUT.value, "out")
    config, prompts = pair_flags.config(), open_prompts(_PROMPTS.value, _ROOT.value, _OUTSIDE.value)
    graded, options = config.graded, (config.reward, _SECONDS.value, _WORKERS.value)
    with contextlib.ExitStack() as stack:
        grade = stack.enter_context(Graders(*options)).grade if graded else None
        bar = stack.enter_context(bars.questions())

        def show(done: int, questions: int) -> None:
            bar.total = questions
            bar.update(done - bar.n)

        print(json.dumps(make_pairs(*checkpoint.load(), prompts, config, _OUT.value, grade, show)))


if __name__ == "__main__":
    pod.run(main, lambda: assist(*checkpoint.load(), pair_flags.config()))
