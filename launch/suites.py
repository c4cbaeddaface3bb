"""What `launch.evaluate --suite=...` does: lists suites, writes prompts, scores predictions, or asks a model."""

import pathlib
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from absl import flags

from internvl_jax.errors import InputError
from internvl_jax.evaluation import (
    SuiteFile,
    describe_suites,
    read_predictions,
    reread,
    score_suite,
    size_name,
    write_lines,
)
from launch import checkpoint, judging, paths, suite_answers, suite_checks, suite_flags, suite_scores


def run(data: str, out: str | None, longest: int | None, batch: int) -> None:
    """Does what the flags ask for; prints a line of JSON for every suite that is scored.

    Args:
      longest: tokens of an answer; None: as many as a suite's mode allows.
      batch: how many questions are asked at a time.
    """
    if suite_flags.SUITE.value == ["list"]:
        print(describe_suites())
        return
    suite_checks.check_files(suite_flags.named(), pathlib.Path(data).is_file())
    if suite_flags.PROMPTS_ONLY.value:
        _write(suite_flags.files(data), out, lambda file: file.prompts(suite_flags.mode()))
    elif suite_flags.RESCORE.value:
        _rescore(data, out)
    else:
        suite_answers.answer(data, out, longest, batch)


def _rescore(data: str, out: str | None) -> None:
    file, *others = suite_flags.files(data)
    if others:
        raise InputError("predictions are those of one suite; give one --suite")
    if out is not None:
        paths.check_new(out, "out")
    predictions = read_predictions(suite_flags.RESCORE.value, file.suite.name)
    result = score_suite(file, reread(file.suite, suite_flags.mode(), predictions), judging.judge(_verdicts(file, out)))
    if out is not None:
        _write([file], out, lambda _: result.rated.rows)
    size = size_name(checkpoint.model_config()) if flags.FLAGS["checkpoint"].value else None
    suite_scores.tell([(file, result)], suite_flags.REPORT.value, size)


def _verdicts(file: SuiteFile, out: str | None) -> pathlib.Path | None:
    """Where a judge's are kept: beside the rows, or in the report's folder."""
    if out is not None:
        return pathlib.Path(out).with_suffix(".verdicts.jsonl")
    report = suite_flags.REPORT.value
    return None if report is None else pathlib.Path(report) / f"{file.suite.name}.verdicts.jsonl"


def _write(files: list[SuiteFile], out: str | None, lines: Callable[[SuiteFile], Iterable[Mapping[str, Any]]]) -> None:
    if out is None or len(files) > 1:
        raise InputError("give one --suite, and by --out the file (JSONL) to write")
    paths.check_new(out, "out")
    write_lines(out, lines(files[0]))
    if files[0].is_published is False:
        print(f"{files[0].table.path} is not the published {files[0].suite.name} (md5)", file=sys.stderr)
