"""Flags of `launch.evaluate` about the paper's benchmark files."""

import dataclasses
import os
import typing

from absl import flags

from internvl_jax.errors import InputError
from internvl_jax.evaluation import MODES, Endpoint, Judge, Mode, SuiteFile, generation, get_suite, open_suite
from internvl_jax.inference import SamplingParams
from launch import sampling_flags

SUITE = flags.DEFINE_list("suite", [], "benchmarks of the paper, NAME,NAME; `list` shows all and what they need")
MODE = flags.DEFINE_enum("mode", "default", list(MODES), "how a suite's questions are asked")
PROMPTS_ONLY = flags.DEFINE_boolean("prompts_only", False, "write a suite's prompts to --out, and answer none")
RESCORE = flags.DEFINE_string(
    "rescore", None, "predictions to score (.json, .jsonl, .tsv, .xlsx), in place of a model's"
)
REPORT = flags.DEFINE_string("report", None, "with --rescore, folder of report.html and report.json")
_IMAGES = flags.DEFINE_string("images", None, "folder of a suite's pictures, where its table has paths")
_FRAMES = flags.DEFINE_integer("frames", 8, "frames of a video", 1, 512)
_CHECK_MD5 = flags.DEFINE_boolean("check_md5", False, "refuse another file than the one that is published")
_JUDGE = flags.DEFINE_string("judge", None, "where a judge answers OpenAI's API, as http://HOST:PORT/v1; default: none")
_JUDGE_MODEL = flags.DEFINE_string("judge_model", "judge", "its name there; its key is $INTERNVL_JUDGE_KEY")


def is_asked() -> bool:
    """Whether a suite is named; InputError for flags of suites without one."""
    if not SUITE.value and (PROMPTS_ONLY.value or RESCORE.value or REPORT.value):
        raise InputError("--prompts_only, --rescore and --report are for the paper's benchmarks; name one by --suite")
    return bool(SUITE.value)


def mode() -> Mode:
    return typing.cast(Mode, MODE.value)  # an enum's flag has no other


def files(data: str) -> list[SuiteFile]:
    """The suites' files, opened."""
    suites = [get_suite(name) for name in SUITE.value]
    return [open_suite(suite, data, _IMAGES.value, _FRAMES.value, _CHECK_MD5.value) for suite in suites]


def judge() -> Judge | None:
    if _JUDGE.value is None:
        return None
    return Endpoint(_JUDGE.value, _JUDGE_MODEL.value, os.environ.get("INTERNVL_JUDGE_KEY", ""))


def sampling(longest: int | None) -> SamplingParams:
    """How answers are written: as the mode has it, unless flags say otherwise.

    Args:
      longest: tokens of an answer; None: as many as the mode allows.
    """
    if sampling_flags.THINKING.value:
        raise InputError("--thinking is for plain questions; a suite is asked so by --mode=thinking")
    asked = generation(mode())
    found = sampling_flags.sampling(longest, asked["max_new_tokens"])
    drawn = [name for name in ("temperature", "top_p") if asked["do_sample"] and not flags.FLAGS[name].present]
    return dataclasses.replace(found, **{name: asked[name] for name in drawn})
