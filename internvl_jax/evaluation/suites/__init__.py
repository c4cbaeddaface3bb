"""Benchmark files of the paper: prompts, answers and scores as VLMEvalKit's InternVL wrapper has them."""

from internvl_jax.evaluation.suites.judge_file import KeptJudge
from internvl_jax.evaluation.suites.judges import Endpoint
from internvl_jax.evaluation.suites.predictions import Prediction, read_predictions
from internvl_jax.evaluation.suites.published import size_name
from internvl_jax.evaluation.suites.suite import Judge, Rated, Suite
from internvl_jax.evaluation.suites.suite_file import SuiteFile, open_suite
from internvl_jax.evaluation.suites.suite_list import SUITES, describe_suites, get_suite
from internvl_jax.evaluation.suites.suite_prompts import MODES, Mode, generation
from internvl_jax.evaluation.suites.suite_report import plain, summary, write_lines, write_report
from internvl_jax.evaluation.suites.suite_run import (
    SuiteResult,
    answer_suite,
    check_pictures,
    messages,
    reread,
    score_suite,
    write_chosen,
)
from internvl_jax.evaluation.suites.suite_videos import FrameSource, VideoClip
from internvl_jax.evaluation.suites.tsv import read_table

__all__ = [
    "Endpoint",
    "FrameSource",
    "Judge",
    "KeptJudge",
    "MODES",
    "Mode",
    "Prediction",
    "Rated",
    "SUITES",
    "Suite",
    "SuiteFile",
    "SuiteResult",
    "VideoClip",
    "answer_suite",
    "check_pictures",
    "describe_suites",
    "generation",
    "get_suite",
    "messages",
    "open_suite",
    "plain",
    "read_predictions",
    "read_table",
    "reread",
    "score_suite",
    "size_name",
    "summary",
    "write_chosen",
    "write_lines",
    "write_report",
]
