"""What the demo shows for its work: accuracy by kind of question, curves of the loss, and examples with pictures."""

import collections
import json
import pathlib
import textwrap
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from demo import easy_vqa
from internvl_jax.training import hooks

COLUMNS, ROWS = 6, 4  # the contact sheet; its last row is kept for mistakes


class Answered(NamedTuple):
    """A test question and what the model said."""

    question: easy_vqa.EasyQuestion
    said: str

    @property
    def right(self) -> bool:
        return self.said.strip() == self.question.answer


class DemoScore(NamedTuple):
    """The share of n questions of a kind that is answered rightly, by the model and by the best fixed answer."""

    kind: str
    n: int
    accuracy: float
    baseline: float


def scores(answered: Sequence[Answered], training: Sequence[easy_vqa.EasyQuestion]) -> list[DemoScore]:
    """A score for every kind that occurs, then one for all questions together.

    The baseline always says the most frequent answer that training questions of the same kind have.
    """
    common = {}
    for kind in easy_vqa.KINDS:
        answers = collections.Counter(q.answer for q in training if easy_vqa.kind(q) == kind)
        common[kind] = answers.most_common(1)[0][0] if answers else None
    right = collections.defaultdict(list)
    for item in answered:
        kind = easy_vqa.kind(item.question)
        pair = (item.right, item.question.answer == common[kind])
        right[kind].append(pair)
        right["all"].append(pair)
    return [
        DemoScore(kind, len(right[kind]), *np.mean(right[kind], axis=0))
        for kind in (*easy_vqa.KINDS, "all")
        if right[kind]
    ]


def table(found: Sequence[DemoScore]) -> str:
    """The scores as a Markdown table, which also reads well on a terminal."""
    lines = [
        "| kind of question | n | accuracy | majority answer |",
        "|:-----------------|-----:|---------:|----------------:|",
    ]
    lines += [f"| {s.kind:16} | {s.n:4} | {s.accuracy:8.2%} | {s.baseline:15.2%} |" for s in found]
    return "\n".join(lines)


def plot_losses(stages: dict[str, pathlib.Path], path: pathlib.Path) -> None:
    """The loss of every stage over training time, side by side.

    Args:
      stages: the training workdirs by name.
      path: the PNG file to write.
    """
    figure = Figure(figsize=(5 * len(stages), 4), layout="constrained")
    for axes, (name, workdir) in zip(np.ravel(figure.subplots(1, len(stages))), stages.items()):
        metrics = hooks.read_metrics(workdir)
        steps, losses = (np.array([line[key] for line in metrics]) for key in ("step", "loss"))
        axes.plot(steps, losses, linewidth=0.5, alpha=0.3)
        window = max(1, len(steps) // 50)
        mean = np.convolve(losses, np.full(window, 1 / window), "valid")
        axes.plot(steps[window - 1 :], mean, color="tab:blue", label=f"mean of {window}")
        axes.legend()
        axes.set(title=name, xlabel="optimizer step", ylabel="loss per supervised token", yscale="log")
        axes.grid(alpha=0.3, which="both")
    figure.savefig(path, dpi=120)


def contact_sheet(
    answered: Sequence[Answered], pictures: dict[int, pathlib.Path], path: pathlib.Path, seed: int
) -> None:
    """Pictures with question, answer and truth: a random choice, and in the last row mistakes, if there are any.

    Args:
      answered: the answers to choose from.
      pictures: the picture files by image number.
      path: the PNG file to write.
    """
    order = np.random.default_rng(seed).permutation(len(answered))
    mistakes = [i for i in order if not answered[i].right][:COLUMNS]
    others = [i for i in order if i not in mistakes][: COLUMNS * (ROWS - 1)]
    figure = Figure(figsize=(2.1 * COLUMNS, 2.5 * ROWS), layout="constrained")
    figure.suptitle(
        "Test pictures, chosen at random; the last row: mistakes" if mistakes else "Test pictures, chosen at random"
    )
    grid = figure.subplots(ROWS, COLUMNS)
    for axes in grid.flat:
        axes.axis("off")
    for axes, i in [*zip(grid[:-1].flat, others), *zip(grid[-1], mistakes)]:
        question, said = answered[i]
        with Image.open(pictures[question.image]) as image:
            axes.imshow(image.convert("RGB"))
        axes.set_title("\n".join(textwrap.wrap(question.text, 24)), fontsize=9)
        # An untrained model says what no font can draw.
        said = "".join(c if c.isascii() and c.isprintable() else "?" for c in said.strip())
        verdict = f"answer: {said}\ntruth: {question.answer}"
        axes.text(
            0.5,
            -0.04,
            verdict,
            transform=axes.transAxes,
            ha="center",
            va="top",
            fontsize=9,
            color="darkgreen" if answered[i].right else "crimson",
        )
    figure.savefig(path, dpi=100)


def write(
    folder: pathlib.Path, stages: dict[str, pathlib.Path], answered: Sequence[Answered], seed: int
) -> list[DemoScore]:
    """Writes report.md, loss.png, examples.png and answers.jsonl; returns the scores.

    Args:
      folder: where they go; it is made if it is not there.
      stages: the training workdirs by name.
      answered: the answers to all test questions.
      seed: decides which examples are shown.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = scores(answered, easy_vqa.questions("train"))
    plot_losses(stages, folder / "loss.png")
    contact_sheet(answered, easy_vqa.image_paths("test"), folder / "examples.png", seed)
    write_answers(answered, folder / "answers.jsonl")
    text = f"# easy-VQA, learned from nothing\n\n{table(found)}\n\n![loss](loss.png)\n\n![examples](examples.png)\n"
    (folder / "report.md").write_text(text)
    return found


def write_answers(answered: Sequence[Answered], path: pathlib.Path) -> None:
    """One JSON object a line: image, question, answer, truth."""
    with path.open("w") as file:
        for (image, text, truth), said in answered:
            file.write(json.dumps({"image": image, "question": text, "answer": said.strip(), "truth": truth}) + "\n")
