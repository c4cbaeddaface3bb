"""Where the time of a run goes, over all of its starts: `WORKDIR/goodput.jsonl`, one interval a line.

Goodput is the time of steps, and of the sampling that they learn from, over all time since the first start. Steps that
a later start takes again were lost. What no interval covers is time in which no process ran, or ran only to its start.
"""

import json
import pathlib
from collections.abc import Sequence
from typing import Any, Literal

from internvl_jax.files import whole_file
from internvl_jax.training.run.logs import read_log
from internvl_jax.validation import check_value

RECORD = "goodput.jsonl"
# 'start' has no length. 'data' is time in which devices wait for a batch, 'sampling' that in which they make one,
# 'host' that in which they wait for what else the host does between two steps, and at the end.
Kind = Literal["start", "preparation", "compiling", "data", "sampling", "host", "step", "checkpoint", "validation"]
_GOOD = ("step", "sampling")


class Goodput:
    """The record of a run, as one process writes it.

    Args:
      workdir: where it is written; lines of earlier starts stay.
    """

    def __init__(self, workdir: pathlib.Path):
        kept = [json.dumps(line) + "\n" for line in read_record(workdir)]
        with whole_file(workdir / RECORD) as temporary:
            temporary.write_text("".join(kept))
        self._file = (workdir / RECORD).open("a")

    def add(self, kind: Kind, step: int, begin: float, end: float) -> None:
        """One interval.

        Args:
          step: the number of the step that it belongs to; of a start, of the last step before it.
          begin, end: seconds since the epoch.
        """
        line = {"kind": kind, "step": step, "begin": round(begin, 4), "end": round(end, 4)}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_record(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """The lines of the record; the last one, where a kill cut it off, is left out.

    Raises:
      InputError: another line is damaged.
    """
    return read_log(workdir / RECORD, _check)


def _check(values: Any, where: str) -> None:
    check_value(values, dict[str, str | int | float], where)
    for name, kind in (("kind", Kind), ("step", int), ("begin", float), ("end", float)):
        check_value(values.get(name), kind, f"{where}.{name}")


def summary(lines: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Seconds by kind, and the share of good ones, from the first start to the last thing that ended; of steps and
    sampling those that were kept.

    Args:
      lines: of the record, in their order.
    """
    starts, lost, kept, others = 0, 0.0, list[dict[str, Any]](), dict[str, float]()
    for line in lines:
        seconds = line["end"] - line["begin"]
        if line["kind"] == "start":
            starts += 1
            lost += sum(one["end"] - one["begin"] for one in kept if one["step"] > line["step"])
            kept = [one for one in kept if one["step"] <= line["step"]]
        elif line["kind"] in _GOOD:
            kept.append(line)
        else:
            others[line["kind"]] = others.get(line["kind"], 0.0) + seconds
    good = {kind: sum(one["end"] - one["begin"] for one in kept if one["kind"] == kind) for kind in _GOOD}
    total = max((line["end"] for line in lines), default=0.0) - min((line["begin"] for line in lines), default=0.0)
    down = total - sum(good.values()) - sum(others.values()) - lost
    seconds = {**{f"{kind}_s": value for kind, value in {**good, **others}.items()}, "lost_s": lost, "down_s": down}
    rounded = {name: round(value, 1) for name, value in seconds.items() if value > 0}
    share = sum(good.values()) / total if total else 0.0
    return {"goodput": round(share, 4), "total_s": round(total, 1), "starts": starts, **rounded}
