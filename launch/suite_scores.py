"""How scores of the paper's benchmarks are told."""

import json
import pathlib
import sys

from internvl_jax.evaluation import SuiteFile, SuiteResult, plain, summary, write_report

Found = list[tuple[SuiteFile, SuiteResult]]


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
        paper = f", the paper's {each['paper']}" if each["paper"] else ""
        said = f"{each['suite']}: {result.rated.headline:.4g} ({low:.4g} .. {high:.4g} at 95 %){paper}."
        print(" ".join([said, *each["remarks"]]), file=sys.stderr)
        print(json.dumps({"suite": each["suite"], "score": plain(result.rated.score)}, ensure_ascii=False))
