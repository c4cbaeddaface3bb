"""What is done with metrics: metrics.jsonl, TensorBoard, a line or a bar for who watches, a picture of the loss."""

import json
import math
import os
import pathlib
import sys
from typing import Any

import tensorboardX
from matplotlib.figure import Figure
from tqdm import tqdm

JSONL = "metrics.jsonl"


class MetricsLog:
    """One JSON object a line in `workdir/metrics.jsonl`, and the same scalars for TensorBoard in `workdir/tensorboard`.

    Lines after the step that a run resumes from are cut off: the file reads as if the run had never stopped.
    """

    def __init__(self, workdir: pathlib.Path, step: int):
        self._path = workdir / JSONL
        kept = [line for line in read_metrics(workdir) if line["step"] <= step]
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
        os.replace(temporary, self._path)
        self._file = self._path.open("a")
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
    """The lines of `metrics.jsonl`; one cut off by a kill is left out."""
    path = workdir / JSONL
    lines = path.read_text().splitlines() if path.exists() else []
    metrics = []
    for line in lines:
        try:
            metrics.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return metrics


class Progress:
    """A bar on a terminal, a plain line every so often elsewhere; both on stderr."""

    def __init__(self, step: int, steps: int):
        self._steps = steps
        self._bar = tqdm(total=steps, initial=step, unit="step", file=sys.stderr) if sys.stderr.isatty() else None

    def show(self, metrics: dict[str, Any]) -> None:
        """`metrics` of the step just logged."""
        shown = {name: f"{metrics[name]:.4g}" for name in ("loss", "grad_norm", "learning_rate", "tokens_per_second")}
        if metrics["mfu"] is not None:
            shown["mfu"] = f"{metrics['mfu']:.1%}"
        if self._bar is not None:
            self._bar.set_postfix(shown)
            self._bar.update(metrics["step"] - self._bar.n)
        else:
            pairs = "  ".join(f"{name} {value}" for name, value in shown.items())
            print(f"step {metrics['step']}/{self._steps}  {pairs}", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def plot_loss(workdir: pathlib.Path) -> pathlib.Path:
    """Draws `workdir/loss.png` from the metrics, and returns its path."""
    metrics = [line for line in read_metrics(workdir) if line["loss"] is not None]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    loss, rate = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    steps = [line["step"] for line in metrics]
    loss.plot(steps, [line["loss"] for line in metrics], linewidth=1)
    loss.set(ylabel="loss", yscale="log" if all(line["loss"] > 0 for line in metrics) else "linear")
    loss.grid(alpha=0.3, which="both")
    rate.plot(steps, [line["learning_rate"] for line in metrics], color="tab:orange", linewidth=1)
    rate.set(ylabel="learning rate", xlabel="optimizer step")
    rate.grid(alpha=0.3)
    path = workdir / "loss.png"
    figure.savefig(path, dpi=120)
    return path
