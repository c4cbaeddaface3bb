"""A model's answers to the paper's benchmarks: written, and scored."""

import contextlib
import json
import pathlib
import sys
import tempfile
from typing import Any

from internvl_jax.evaluation import (
    SuiteFile,
    answer_suite,
    check_pictures,
    read_predictions,
    score_suite,
    size_name,
    write_lines,
)
from internvl_jax.files import claimed
from internvl_jax.inference import SamplingParams, Thresholds, complete_many
from launch import answering, bars, best_of_flags, best_of_suites, checkpoint, judging, suite_flags, suite_scores


def answer(data: str, out: str | None, longest: int | None, batch: int) -> None:
    """Answers what of the suites is not answered yet, and scores it; see `suites.run`."""
    config, thresholds, found = checkpoint.model_config(), answering.thresholds(), suite_scores.Found()
    sampling = suite_flags.sampling(longest, size_name(config))
    files, judge = suite_flags.files(data), judging.judge(None)
    for file in files:
        check_pictures(file, suite_flags.mode())
    settings = answering.known_by(sampling, thresholds)
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(out or stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(claimed(folder))
        write = best_of_suites.answer if best_of_flags.is_asked() else _answer_once
        write(files, folder, batch, sampling, thresholds, settings)
        for file in files:
            target = folder / f"{file.suite.name}.jsonl"
            if not file.has_answers or file.suite.rule is None or (file.suite.judge == "required" and judge is None):
                why = "without a judge" if file.has_answers else "as its table has no answers"
                print(f"{file.suite.name}: answered, and not scored {why}", file=sys.stderr)
                print(json.dumps({"suite": file.suite.name, "score": None}))
                continue
            judge = judging.judge(folder / f"{file.suite.name}.verdicts.jsonl")
            result = score_suite(file, read_predictions(target, file.suite.name), judge)
            write_lines(folder / f"{file.suite.name}.rows.jsonl", result.rated.rows)
            found.append((file, result))
        suite_scores.tell(found, str(folder) if out else None, size_name(config, best_of_flags.is_asked()))


def _answer_once(
    files: list[SuiteFile],
    folder: pathlib.Path,
    batch: int,
    sampling: SamplingParams,
    thresholds: Thresholds,
    settings: dict[str, Any],
) -> None:
    with answering.opened() as (model, processor):
        ask = lambda talks: complete_many(model, processor, talks, batch, sampling, None, thresholds)
        for file in files:
            target = folder / f"{file.suite.name}.jsonl"
            with bars.questions(desc=file.suite.name, total=len(file.table.rows)) as bar:
                show = bars.advance(bar)
                answer_suite(file, suite_flags.mode(), target, ask, settings, batch, show)
