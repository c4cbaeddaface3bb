"""The report of a cascade: a table of the stages, curves of their training, thresholds, and what the router decides.

1. `read` gathers what the parts have left in the cascade's folder.
2. `write` draws it: four PNG files, and `index.html` with all of them inside, so that it can be handed on alone.
3. `text` says it on a terminal, `summary` in one line.
"""

import base64
import html
import itertools
import json
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from cascade import evaluation, progress, vico
from cascade.evaluation import CascadeScore, Said
from cascade.recipe import CascadeRecipe
from cascade.vico import Point
from internvl_jax.evaluation import router_overlay
from internvl_jax.files import whole_file
from internvl_jax.inference import load
from internvl_jax.training import GspoConfig, hooks

# What answers the test questions, and how the report calls it.
MODELS = {
    "sft": "SFT",
    "mpo": "SFT, MPO",
    "gspo": "SFT, MPO, GSPO",
    "gspo_only": "SFT, GSPO (no MPO)",
    "flash": "all of them, ViCO: Flash",
    "random_router": "the same, random router",
}
FILES = ("stages.png", "training.png", "thresholds.png", "router.png")
_OVERLAYS = 4  # boards
_SMOOTH = 40  # steps
_TITLE = "The cascade on handwritten digits"


class Found(NamedTuple):
    """All that the report shows.

    Attributes:
      reading: the shares of unseen digits that the model reads after CPT.
      said: the answers to the test questions, by model.
      metrics: the metrics, line by line, of the stages that curves are drawn of.
      points: what the sweep over thresholds found, on questions for development.
      chosen: the point whose thresholds the Flash model answers with.
      seconds: how long every part took.
      rollouts: how many responses GSPO sampled, by stage.
      sampled: how many responses pairs were made of.
    """

    reading: dict[str, float]
    said: dict[str, list[Said]]
    metrics: dict[str, list[dict[str, Any]]]
    points: list[Point]
    chosen: Point
    seconds: dict[str, float]
    rollouts: dict[str, int]
    sampled: int


def read(folder: pathlib.Path, recipe: CascadeRecipe) -> Found:
    """What a cascade has left in its folder, all parts having ended."""
    points, settings = vico.sweep(folder, recipe), cast(GspoConfig, recipe.gspo.settings)
    rounds = {name: len(list((folder / name / "rollouts").glob("*.jsonl"))) for name in ("gspo", "gspo_only")}
    return Found(
        json.loads((folder / "answers" / "reading_test.json").read_text()),
        {name: evaluation.read_answers(folder / "answers" / f"{name}.jsonl") for name in MODELS},
        {name: hooks.read_metrics(folder / name) for name in ("mpo", "gspo", "gspo_only", "router")},
        points,
        vico.choose(points, recipe.sweep.saving),
        progress.seconds(folder),
        {name: count * settings.prompts * settings.group for name, count in rounds.items()},
        recipe.data.rl * recipe.pairs.samples,
    )


def summary(found: Found) -> dict[str, Any]:
    """Accuracies on the test questions, image tokens a question before and with the router, and seconds of it all."""
    tokens = {
        what: round(float(np.mean([one.image_tokens for one in found.said[name]])), 3)
        for what, name in (("base", "gspo"), ("flash", "flash"))
    }
    return {
        "accuracy": {name: round(_total(said).accuracy, 4) for name, said in found.said.items()},
        "visual_tokens": tokens,
        "n": len(found.said["sft"]),
        "seconds": round(sum(found.seconds.values()), 1),
    }


def text(found: Found) -> str:
    """Reading, the table of the stages and accuracy by kind of question, in Markdown."""
    return "\n\n".join([_reading(found), _markdown(_stage_table(found)), _markdown(_kind_table(found)), _notes(found)])


def write(folder: pathlib.Path, found: Found) -> pathlib.Path:
    """Draws the pictures and writes the page into FOLDER/report; returns the page, which comes last."""
    out = folder / "report"
    out.mkdir(parents=True, exist_ok=True)
    _save(_draw_stages(found), out / "stages.png")
    _save(_draw_training(found), out / "training.png")
    _save(_draw_thresholds(found), out / "thresholds.png")
    with whole_file(out / "router.png") as temporary:
        _overlay(folder, found).save(temporary, format="png")
    page = out / "index.html"
    progress.write_whole(page, _page(found, out))
    return page


def _total(said: Sequence[Said]) -> CascadeScore:
    return evaluation.score(said)[-1]


def _reading(found: Found) -> str:
    shares = ", ".join(f"{what} {share:.1%}" for what, share in found.reading.items())
    return f"After CPT the model reads, of digits that it has never seen: {shares}."


def _notes(found: Found) -> str:
    chosen, numbers = found.chosen, summary(found)
    tokens, accuracy = numbers["visual_tokens"], numbers["accuracy"]
    sampled = " and ".join(f"{count:,} ({MODELS[name]})" for name, count in found.rollouts.items())
    kept = accuracy["flash"] / max(accuracy["gspo"], 1e-9)
    least = min(found.points, key=lambda point: point.saved)
    minutes = ", ".join(f"{part} {seconds / 60:.1f}" for part, seconds in found.seconds.items())
    return (
        f"Responses sampled by GSPO: {sampled}. {found.sampled:,} more were sampled before: MPO learns from pairs of "
        f"them, and both GSPOs take from them which prompts are of use. The Flash model spends {tokens['flash']:.1f} "
        f"image tokens a question and not {tokens['base']:.1f}, that is {1 - tokens['flash'] / tokens['base']:.1%} "
        f"fewer, and keeps {kept:.1%} of the accuracy; its {chosen.kind} threshold {chosen.threshold:g} was chosen on "
        f"questions for development. Of those it answers {chosen.accuracy:.1%} so, and {least.accuracy:.1%} with "
        f"{least.saved:.1%} saved; consistency training, which learns from right answers, has a part in both. "
        f"Minutes: {minutes}; together {numbers['seconds'] / 60:.1f}."
    )


def _stage_table(found: Found) -> list[list[str]]:
    rows = [["model", "accuracy", "95 % interval", "well-formed", "tokens an answer", "image tokens"]]
    for name, said in found.said.items():
        score, means = _total(said), np.mean([(one.tokens, one.image_tokens) for one in said], axis=0)
        interval = f"{score.low:.2%} .. {score.high:.2%}"
        numbers = [f"{score.accuracy:.2%}", interval, f"{score.formed:.2%}", *(f"{mean:.1f}" for mean in means)]
        rows.append([MODELS[name], *numbers])
    return rows


def _kind_table(found: Found) -> list[list[str]]:
    scores = {name: evaluation.score(said) for name, said in found.said.items()}
    rows = [["kind of question", "n", *(MODELS[name] for name in scores)]]
    for of_kind in zip(*scores.values(), strict=True):
        rows.append([of_kind[0].kind, str(of_kind[0].n), *(f"{score.accuracy:.2%}" for score in of_kind)])
    return rows


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def _draw_stages(found: Found) -> Figure:
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = figure.subplots()
    for place, (name, said) in enumerate(found.said.items()):
        score = _total(said)
        axes.barh(place, score.accuracy, color="tab:orange" if name in ("gspo_only", "random_router") else "tab:blue")
        around = [[score.accuracy - score.low], [score.high - score.accuracy]]
        axes.errorbar(score.accuracy, place, xerr=around, color="black", capsize=4)
        axes.text(score.high + 0.004, place, f"{score.accuracy:.1%}", va="center")
    axes.set_yticks(range(len(MODELS)), list(MODELS.values()))
    axes.invert_yaxis()
    asked = f"{len(found.said['sft']):,} questions"
    axes.set(xlim=(0.0, 1.0), xlabel=f"accuracy on {asked}, 95 % interval")
    axes.grid(alpha=0.3, axis="x")
    return figure


def _draw_training(found: Found) -> Figure:
    figure = Figure(figsize=(13, 3.6), layout="constrained")
    rewards, margins, router = figure.subplots(1, 3)
    for name in ("gspo", "gspo_only"):
        _curve(rewards, found.metrics[name], "reward", MODELS[name])
    rewards.set(title="GSPO: mean reward of what is sampled", xlabel="optimizer step")
    _curve(margins, found.metrics["mpo"], "accuracy", "pairs told apart")
    margins.set(title="MPO: chosen above rejected", xlabel="optimizer step")
    _curve(router, found.metrics["router"], "accuracy", "decisions as the targets")
    router.set(title="Router: agreement with its targets", xlabel="optimizer step")
    for axes in (rewards, margins, router):
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def _curve(axes: Axes, metrics: Sequence[dict[str, Any]], name: str, label: str) -> None:
    points = np.array([(line["step"], line[name]) for line in metrics if line.get(name) is not None], float)
    window = max(1, min(_SMOOTH, len(points) // 4))
    smooth = np.convolve(points[:, 1], np.full(window, 1 / window), "valid")
    (line,) = axes.plot(points[window - 1 :, 0], smooth, label=f"{label} (mean of {window})")
    axes.plot(points[:, 0], points[:, 1], linewidth=0.5, alpha=0.25, color=line.get_color())


def _draw_thresholds(found: Found) -> Figure:
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    axes = figure.subplots()
    for (kind, of_kind), marker in zip(itertools.groupby(found.points, lambda point: point.kind), "os"):
        points = list(of_kind)
        tokens, accuracies, random = (
            [getattr(point, name) for point in points] for name in ("tokens", "accuracy", "random_accuracy")
        )
        axes.plot(tokens, accuracies, marker=marker, label=f"router, {kind} threshold")
        axes.plot(tokens, random, marker=marker, color="gray", alpha=0.6, label=f"random, as many tiles ({kind})")
        labelled = -1.0
        for point in points:
            place = (point.tokens, point.accuracy)
            if abs(point.tokens - labelled) > 0.5:  # of thresholds that decide nearly the same, the first
                axes.annotate(f"{point.threshold:g}", place, (4, 5), textcoords="offset points", fontsize=7)
                labelled = point.tokens
    axes.axvline(found.chosen.tokens, color="black", linestyle=":", label="chosen")
    axes.set(xlabel="image tokens a question", ylabel="accuracy on questions for development")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def _overlay(folder: pathlib.Path, found: Found) -> Image.Image:
    """What the router decides about the first boards of the test, side by side."""
    model, processor = load(folder / "router", dtype="float32")
    boards = [one.asked.image for one in found.said["flash"][:_OVERLAYS]]
    drawn = [router_overlay(model, processor, [board], found.chosen.thresholds) for board in boards]
    gap = 24
    whole = Image.new("RGB", (sum(d.width + gap for d in drawn) - gap, max(d.height for d in drawn)), "white")
    left = 0
    for picture in drawn:
        whole.paste(picture, (left, 0))
        left += picture.width + gap
    return whole


def _save(figure: Figure, path: pathlib.Path) -> None:
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")


_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: 0.3rem 0.8rem; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child { text-align: left; }
th { border-bottom: 2px solid #888; }
figure { margin: 2rem 0; }
img { max-width: 100%; }
figcaption { color: #555; font-size: 0.9rem; }
"""

_CAPTIONS = {
    "stages.png": "Accuracy of every stage on held-out boards, with 95 % intervals (Wilson).",
    "training.png": "What the stages of reinforcement and the router learn, step by step.",
    "thresholds.png": "Image tokens against accuracy over thresholds, beside as many tiles compressed at random.",
    "router.png": "What the router decides about boards of the test: red tiles keep all tokens, green ones few.",
}


def _page(found: Found, out: pathlib.Path) -> str:
    parts = [f"<h1>{_TITLE}</h1>", f"<p>{html.escape(_reading(found))}</p>", _html(_stage_table(found))]
    parts += [f"<p>{html.escape(_notes(found))}</p>"]
    for name in FILES:
        coded = base64.b64encode((out / name).read_bytes()).decode()
        caption = html.escape(_CAPTIONS[name])
        picture = f'<img alt="{caption}" src="data:image/png;base64,{coded}">'
        parts.append(f"<figure>{picture}<figcaption>{caption}</figcaption></figure>")
    parts += ["<h2>By kind of question</h2>", _html(_kind_table(found))]
    head = f'<meta charset="utf-8"><title>{_TITLE}</title><style>{_STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n' + "\n".join(parts) + "\n</body></html>\n"


def _html(rows: Sequence[Sequence[str]]) -> str:
    cells = lambda row, tag: "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row)
    lines = [f"<tr>{cells(rows[0], 'th')}</tr>", *(f"<tr>{cells(row, 'td')}</tr>" for row in rows[1:])]
    return f"<table>{''.join(lines)}</table>"
