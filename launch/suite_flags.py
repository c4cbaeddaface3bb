"""Flags of `launch.evaluate` about the paper's benchmark files."""

import dataclasses
import typing

from absl import flags

from internvl_jax.errors import InputError
from internvl_jax.evaluation import MODES, Mode, Suite, SuiteFile, generation, get_suite, open_suite
from internvl_jax.inference import SamplingParams
from launch import best_of_flags, sampling_flags

SUITE = flags.DEFINE_list("suite", [], "benchmarks of the paper, NAME,NAME; `list` shows all and what they need")
MODE = flags.DEFINE_enum(
    "mode", "default", list(MODES), "how a suite's questions are asked; with --best_of cot by default"
)
PROMPTS_ONLY = flags.DEFINE_boolean("prompts_only", False, "write a suite's prompts to --out, and answer none")
RESCORE = flags.DEFINE_string(
    "rescore", None, "predictions to score (.json, .jsonl, .tsv, .xlsx), in place of a model's"
)
REPORT = flags.DEFINE_string("report", None, "with --rescore, folder of report.html and report.json")
_IMAGES = flags.DEFINE_string("images", None, "folder of a suite's pictures, where its table has paths")
_FRAMES = flags.DEFINE_integer("frames", 8, "frames of a video", 1, 512)
_CHECK_MD5 = flags.DEFINE_boolean("check_md5", False, "refuse another file than the one that is published")


def mode() -> Mode:
    """How questions are asked: where the best of several answers counts by chains of thought, as the official code."""
    several = best_of_flags.BEST_OF.value > 1 and not MODE.present
    return "cot" if several else typing.cast(Mode, MODE.value)  # an enum's flag has no other


def named() -> list[Suite]:
    """The suites of --suite; InputError for a name that none has."""
    return [get_suite(name) for name in SUITE.value]


def files(data: str) -> list[SuiteFile]:
    """The suites' files, opened."""
    suites = named()
    return [open_suite(suite, data, _IMAGES.value, _FRAMES.value, _CHECK_MD5.value) for suite in suites]


def sampling(longest: int | None, size: str | None) -> SamplingParams:
    """How answers are written: as the mode has it, unless flags say otherwise.

    Args:
      longest: tokens of an answer; None: as many as the mode allows.
      size: of the model, as the paper calls it.
    """
    if sampling_flags.THINKING.value:
        raise InputError("--thinking is for plain questions; a suite is asked so by --mode=thinking")
    asked = generation(mode(), size)
    found = sampling_flags.sampling(longest, asked["max_new_tokens"])
    drawn = [name for name in ("temperature", "top_p") if asked["do_sample"] and not flags.FLAGS[name].present]
    return dataclasses.replace(found, **{name: asked[name] for name in drawn})
