"""The cascade from nothing to its report; killed and started again it goes on where it was.

1. Boards, questions and chains are made (`training_data`).
2. CPT: a tiny model learns from random weights to read digits. SFT: from few chains of thought it learns to answer.
3. Cascade RL: right and wrong answers of its own are paired and learned from (MPO), then comes GSPO. Beside it GSPO
   alone, straight from SFT, with as many rollouts.
4. ViCO: a Flash model is made of the last one, and its thresholds are chosen (`vico`).
5. All of them answer the test questions; the report is written (`report`).

`explore` is for development: what sampling finds that greedy answers miss, and whether reading or reasoning fails.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

from cascade import evaluation, progress, report, stages, training_data, vico
from cascade.boards import Split
from cascade.evaluation import Answerer
from cascade.recipe import RECIPE, CascadeRecipe
from internvl_jax.errors import InputError

Part = Literal[
    "data", "cpt", "sft", "pairs", "mpo", "gspo", "gspo_only", "consistency", "router", "sweep", "test", "report"
]
PARTS: tuple[Part, ...] = get_args(Part)
SAMPLES = 16  # answers to a question, in `explore`


def run(workdir: str, parts: Sequence[Part] = PARTS, recipe: CascadeRecipe = RECIPE) -> dict[str, Any] | None:
    """Runs parts of the cascade, each on what the ones before it have left; prints as it goes.

    Returns:
      what the report says in short, if that is among the parts.

    Raises:
      InputError: scikit-learn is missing, or the workdir belongs to another recipe.
    """
    folder = pathlib.Path(workdir).absolute()
    _claim(folder, recipe)
    steps: dict[Part, Callable[[], Any]] = {
        "data": lambda: stages.make_data(folder, recipe),
        "cpt": lambda: _pretrain(folder, recipe),
        "sft": lambda: stages.run_sft(folder, recipe),
        "pairs": lambda: stages.make_pairs(folder, recipe),
        "mpo": lambda: stages.run_mpo(folder, recipe),
        "gspo": lambda: stages.run_gspo(folder, "gspo", "mpo", recipe),
        "gspo_only": lambda: stages.run_gspo(folder, "gspo_only", "sft", recipe),
        "consistency": lambda: stages.run_consistency(folder, recipe),
        "router": lambda: stages.run_router(folder, recipe),
        "sweep": lambda: vico.sweep(folder, recipe),
        "test": lambda: _test(folder, recipe),
    }
    for part in (part for part in steps if part in parts):
        with progress.clock(folder, part):
            steps[part]()
    if "report" not in parts:
        return None
    found = report.read(folder, recipe)
    report.write(folder, found)
    print(f"\n{report.text(found)}\n\nreport: {folder / 'report' / 'index.html'}\n", flush=True)
    return report.summary(found)


def _claim(folder: pathlib.Path, recipe: CascadeRecipe) -> None:
    """Notes whose folder it is: what parts have left is taken as it is, so all have to be of one recipe."""
    path, ours = folder / "recipe.json", json.loads(json.dumps(dataclasses.asdict(recipe)))
    if not path.exists():
        progress.write_whole(path, json.dumps(ours, indent=2) + "\n")
    elif json.loads(path.read_text()) != ours:
        raise InputError(f"{folder} was begun with another recipe; give another workdir or delete this one")


def _pretrain(folder: pathlib.Path, recipe: CascadeRecipe) -> None:
    _read(stages.run_cpt(folder, recipe), folder, "dev", recipe)


def _read(workdir: pathlib.Path, folder: pathlib.Path, split: Split, recipe: CascadeRecipe) -> None:
    """How well the pretrained model reads digits that it has never seen; those of the test wait until the end."""
    shares = evaluation.read_unseen(workdir, split, folder / "answers" / f"reading_{split}.json", recipe.seed)
    said = ", ".join(f"{what} {share:.2%}" for what, share in shares.items())
    print(f"CPT reads unseen digits ({split}): {said}", flush=True)


def _test(folder: pathlib.Path, recipe: CascadeRecipe) -> None:
    _read(folder / "cpt", folder, "test", recipe)
    for name in report.MODELS:
        if name in ("flash", "random_router"):
            said = vico.test(folder, name, recipe)
        else:
            said = evaluation.test(folder / name, folder, name)
        print(f"{name}: {evaluation.score(said)[-1].accuracy:.2%} of {len(said)}", flush=True)


def explore(answerer: Answerer, data: pathlib.Path, count: int, recipe: CascadeRecipe = RECIPE) -> str:
    """What there is for reinforcement learning to gain, on the first `count` questions for development, as a text."""
    asked = evaluation.read_questions(data / "dev.jsonl")[:count]
    greedy, sampled = answerer.ask(asked), answerer.ask(asked, temperature=1.0, samples=SAMPLES)
    digits = [training_data.make("dev", number, recipe.data.seed).digits for number in range(len(asked))]
    read = [one for one, truth in zip(greedy, digits, strict=True) if evaluation.reads(one, truth)]
    lines = ["greedy", evaluation.table(evaluation.score(greedy)), f"{SAMPLES} samples a question"]
    lines += [evaluation.table(evaluation.score(sampled))]
    lines += [f"any of them right: {evaluation.pass_at(sampled, SAMPLES):.2%}"]
    lines += [f"tokens of a sample: {sum(one.tokens for one in sampled) / len(sampled):.1f}"]
    lines += [f"boards read rightly: {len(read) / len(greedy):.2%}"]
    lines += ["where they were", evaluation.table(evaluation.score(read))]
    return "\n".join(lines)
