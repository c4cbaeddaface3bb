"""A model's answers to the paper's benchmarks: written, scored and told."""

import contextlib
import dataclasses
import json
import pathlib
import sys
import tempfile

from internvl_jax.evaluation import (
    SuiteFile,
    SuiteResult,
    answer_suite,
    check_pictures,
    plain,
    read_predictions,
    score_suite,
    size_name,
    summary,
    write_lines,
    write_report,
)
from internvl_jax.files import claimed
from internvl_jax.inference import complete_many
from launch import answering, bars, checkpoint, suite_flags

Found = list[tuple[SuiteFile, SuiteResult]]


def answer(data: str, out: str | None, longest: int | None, batch: int) -> None:
    """Answers what of the suites is not answered yet, and scores it; see `suites.run`."""
    sampling, thresholds, found = suite_flags.sampling(longest), answering.thresholds(), Found()
    files, judge, size = suite_flags.files(data), suite_flags.judge(), size_name(checkpoint.model_config())
    for file in files:
        check_pictures(file, suite_flags.mode())
    settings = {"sampling": dataclasses.asdict(sampling), "thresholds": dataclasses.asdict(thresholds)}
    settings["checkpoint"] = str(checkpoint.directory())
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(out or stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(claimed(folder))
        model, processor = stack.enter_context(answering.opened())
        ask = lambda talks: complete_many(model, processor, talks, batch, sampling, None, thresholds)
        for file in files:
            target = folder / f"{file.suite.name}.jsonl"
            with bars.questions(desc=file.suite.name, total=len(file.table.rows)) as bar:
                show = lambda done, bar=bar: bar.update(done - bar.n)
                answer_suite(file, suite_flags.mode(), target, ask, sampling.max_new_tokens, settings, batch, show)
            result = score_suite(file, read_predictions(target, file.suite.name), judge)
            write_lines(folder / f"{file.suite.name}.rows.jsonl", result.rated.rows)
            found.append((file, result))
        tell(found, str(folder) if out else None, size)


def tell(found: Found, report: str | None, size: str | None) -> None:
    """Prints a line of JSON for every suite, and one for a reader to stderr.

    Args:
      report: folder of the report; None: none is written.
      size: of the model, as the paper calls it.
    """
    if report is not None:
        write_report(pathlib.Path(report), found, size)
    for file, result in found:
        each = summary(file, result, size)
        low, high = each["interval_95"]
        said = f"{each['suite']}: {each['headline']}, 95 % {low:.1f} .. {high:.1f}, the paper's {each['paper']}."
        print(" ".join([said, *each["remarks"]]), file=sys.stderr)
        print(json.dumps({"suite": each["suite"], "score": plain(result.rated.score)}, ensure_ascii=False))
