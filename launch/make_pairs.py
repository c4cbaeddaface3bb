"""Preference pairs for MPO from a model's own responses.

    python -m launch.make_pairs --checkpoint=DIR --prompts=questions.jsonl --out=pairs

samples answers to every question, grades them, and pairs right ones with wrong ones. With --method=dropout_ntp, for
answers that can't be graded, a response is preferred to one whose second half was written without seeing the picture.
Prompts are lines of {"image", "question", "answer"}, a parquet file as MMPR-Tiny, or a meta file of such files.
--out has pairs, meta.json for training, responses, and the accuracy of each question, once all is done; a run that was
stopped goes on with the same command. On a pod the first host alone reads prompts, grades and writes. The last line of
stdout is a JSON summary.
"""

import contextlib
import json
from typing import Any

from absl import flags

from internvl_jax.data import open_prompts
from internvl_jax.grading import Graders
from internvl_jax.making import METHODS, PairConfig, assist, make_pairs
from launch import bars, checkpoint, paths, pod

_PROMPTS = flags.DEFINE_string("prompts", None, "questions: .jsonl, .parquet, or a meta file (.json)", required=True)
_ROOT = flags.DEFINE_string("root", None, "folder of the images, where no meta file says it; default: the file's own")
_OUTSIDE = flags.DEFINE_boolean("allow_outside_root", False, "images may lie outside of the folder that is given")
_OUT = flags.DEFINE_string("out", None, "folder to write", required=True)
_SECONDS = flags.DEFINE_float("grading_seconds", 5.0, "longest time that grading one response may take")
_WORKERS = flags.DEFINE_integer("grading_workers", 2, "processes that grade", 1)
_SETTINGS = {
    "method": flags.DEFINE_enum("method", "correctness", METHODS, "how pairs are made"),
    "samples": flags.DEFINE_integer("samples", None, "responses to a question; default: 32, for dropout_ntp 1", 1),
    "temperature": flags.DEFINE_float("temperature", 1.0, "of the draws"),
    "top_k": flags.DEFINE_integer("top_k", 50, "draw from this many likeliest tokens; 0 for all"),
    "max_new_tokens": flags.DEFINE_integer("max_new_tokens", 4096, "longest response", lower_bound=1),
    "max_prompt_tokens": flags.DEFINE_integer("max_prompt_tokens", 8192, "longer prompts are left out", lower_bound=1),
    "start_ratio": flags.DEFINE_float("start_ratio", 0.5, "dropout_ntp: share of a response that is kept"),
    "max_pairs": flags.DEFINE_integer("max_pairs", 15, "pairs of a question, at most"),
    "length_slack": flags.DEFINE_float("length_slack", 0.1, "share by which mean lengths in pairs may differ; 1: any"),
    "reward": flags.DEFINE_string("reward", "answer", "how responses are graded"),
    "max_broken": flags.DEFINE_integer("max_broken", 0, "so many prompts may be unreadable; more stop the run"),
    "batch_size": flags.DEFINE_integer("batch_size", 32, "responses at a time", lower_bound=1),
    "seed": flags.DEFINE_integer("seed", 0, "of the draws", lower_bound=0),
}


def _config() -> PairConfig:
    settings: dict[str, Any] = {name: flag.value for name, flag in _SETTINGS.items()}
    settings["samples"] = settings["samples"] or {"correctness": 32, "dropout_ntp": 1}[settings["method"]]
    return PairConfig(**settings)


def main(argv: list[str]) -> None:
    paths.check_new(_OUT.value, "out")
    config, prompts = _config(), open_prompts(_PROMPTS.value, _ROOT.value, _OUTSIDE.value)
    graded, options = config.method == "correctness", (config.reward, _SECONDS.value, _WORKERS.value)
    with contextlib.ExitStack() as stack:
        grade = stack.enter_context(Graders(*options)).grade if graded else None
        bar = stack.enter_context(bars.questions())

        def show(done: int, questions: int) -> None:
            bar.total = questions
            bar.update(done - bar.n)

        print(json.dumps(make_pairs(*checkpoint.load(), prompts, config, _OUT.value, grade, show)))


if __name__ == "__main__":
    pod.run(main, lambda: assist(*checkpoint.load(), _config()))
