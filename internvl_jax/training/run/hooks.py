"""What is done with metrics: metrics.jsonl, TensorBoard, a table or a bar for who watches, a picture."""

import json
import logging
import math
import pathlib
import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from internvl_jax.files import whole_file
from internvl_jax.training.run.logs import read_log
from internvl_jax.validation import check_value

_LOG = logging.getLogger(__name__)
JSONL = "metrics.jsonl"
_WIDEST = 9  # characters of a number
_HEADER_EVERY = 25  # lines
_PICTURE_SECONDS = 60.0


class MetricsLog:
    """One JSON object a line in `workdir/metrics.jsonl`, and the same scalars for TensorBoard in `workdir/tensorboard`.

    Lines after the step that a run resumes from are cut off: the file reads as if the run had never stopped.
    """

    def __init__(self, workdir: pathlib.Path, step: int):
        self._path = workdir / JSONL
        kept = [line for line in read_metrics(workdir) if line["step"] <= step]
        with whole_file(self._path) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
        self._file = self._path.open("a")
        import tensorboardX  # here: it imports torch where that is installed

        self._board = tensorboardX.SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)

    def write(self, metrics: dict[str, Any]) -> None:
        # JSON knows no NaN.
        metrics = {name: value if value is None or math.isfinite(value) else None for name, value in metrics.items()}
        self._file.write(json.dumps(metrics) + "\n")
        self._file.flush()
        for name, value in metrics.items():
            if name != "step" and value is not None:
                self._board.add_scalar(name, value, metrics["step"])

    def close(self) -> None:
        self._file.close()
        self._board.close()


def read_metrics(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`; the last one, where a kill or a power failure cut it off, is left out.

    Raises:
      InputError: another line is damaged.
    """
    return read_log(workdir / JSONL, _check)


def _check(values: Any, where: str) -> None:
    check_value(values, dict[str, float | None], where)
    check_value(values.get("step"), int, f"{where}.step")


class Progress:
    """What matters, by step: a table, whose header comes again every so often; on a terminal as many of its columns as
    fit, above a bar.

    Args:
      step: the steps taken so far.
      steps: all steps of the run.
      columns: the metrics to show.
    """

    def __init__(self, step: int, steps: int, columns: Sequence[str]):
        self._steps, self._columns, self._lines = steps, columns, 0
        self._bar = tqdm(total=steps, initial=step, unit="step", file=sys.stderr) if sys.stderr.isatty() else None

    def show(self, metrics: dict[str, Any]) -> None:
        """`metrics` of the step just logged."""
        shown = {name: _brief(metrics[name]) for name in self._columns if metrics.get(name) is not None}
        cells = {"step": f"{metrics['step']}/{self._steps}", **shown}
        widths = [max(len(name), _WIDEST) for name in cells]
        if self._lines % _HEADER_EVERY == 0:
            self._print(cells, widths)
        self._lines += 1
        self._print(cells.values(), widths)
        if self._bar is not None:
            self._bar.update(metrics["step"] - self._bar.n)

    def _print(self, cells: Iterable[str], widths: Sequence[int]) -> None:
        line = "  ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
        if self._bar is None:
            print(line, file=sys.stderr, flush=True)
            return
        columns = shutil.get_terminal_size().columns
        if len(line) > columns:
            line = line[:columns].rpartition("  ")[0]
        self._bar.write(line, file=sys.stderr)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def _brief(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else str(value)


class Picture:
    """`workdir/health.png`: a small plot of each metric by step; drawn anew at most once a minute, and at the end.

    A run does not stop for a picture that can't be written: that is a warning in the log.

    Args:
      workdir: where the metrics are read and the picture is written.
      columns: the metrics to draw.
    """

    def __init__(self, workdir: pathlib.Path, columns: Sequence[str]):
        self._workdir, self._columns = workdir, columns
        self._drawn = time.monotonic()

    def update(self) -> None:
        """Draws it if it is time."""
        if time.monotonic() - self._drawn > _PICTURE_SECONDS:
            self.draw()

    def draw(self) -> None:
        """Draws it now."""
        try:
            plot_health(self._workdir, self._columns)
        except OSError as error:
            _LOG.warning("the picture in %s is not drawn (%s)", self._workdir, error)
        self._drawn = time.monotonic()


def plot_health(workdir: pathlib.Path, columns: Sequence[str]) -> None:
    """Draws `workdir/health.png`: what every column did, step by step, its running mean on top."""
    from matplotlib.figure import Figure  # here: most of what imports this module draws nothing

    metrics = read_metrics(workdir)
    columns = [name for name in columns if any(line.get(name) is not None for line in metrics)]
    across = min(4, max(1, len(columns)))
    down = -(-max(1, len(columns)) // across)
    figure = Figure(figsize=(3.4 * across, 2.2 * down), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False).reshape(-1)
    for place in axes[len(columns) :]:
        place.set_axis_off()
    for place, name in zip(axes, columns):
        points = np.array([(line["step"], line[name]) for line in metrics if line.get(name) is not None], float)
        place.plot(points[:, 0], points[:, 1], linewidth=0.8, alpha=0.45, color="tab:blue")
        window = max(1, len(points) // 20)
        smooth = np.convolve(points[:, 1], np.ones(window) / window, mode="valid")
        place.plot(points[window - 1 :, 0], smooth, linewidth=1.6, color="tab:blue")
        place.set_title(name.replace("_", " "), fontsize=9)
        place.tick_params(labelsize=7)
        place.grid(alpha=0.3)
    with whole_file(workdir / "health.png") as temporary:
        figure.savefig(temporary, dpi=120, format="png")
