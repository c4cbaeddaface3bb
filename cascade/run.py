"""The cascade from nothing to its report; killed and started again it goes on where it was.

1. Boards, questions and chains are made (`training_data`).
2. CPT: a tiny model learns from random weights to read digits. SFT: from few chains of thought it learns to answer.
3. Cascade RL: right and wrong answers of its own are paired and learned from (MPO), then comes GSPO. Beside it GSPO
   alone, straight from SFT, with as many rollouts.
4. ViCO: a Flash model is made of the last one, and its thresholds are chosen (`vico`).
5. All of them answer the test questions; the report is written (`report`).

`explore` is for development: what sampling finds that greedy answers miss, and whether reading or reasoning fails.
"""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

from cascade import evaluation, progress, report, stages, training_data, vico
from cascade.evaluation import Answerer
from cascade.recipe import RECIPE, Recipe

Part = Literal[
    "data", "cpt", "sft", "pairs", "mpo", "gspo", "gspo_only", "consistency", "router", "sweep", "test", "report"
]
PARTS: tuple[Part, ...] = get_args(Part)
SAMPLES = 16  # of a question, in `explore`


def run(workdir: str, parts: Sequence[Part] = PARTS, recipe: Recipe = RECIPE) -> dict[str, Any] | None:
    """Runs parts of the cascade, each on what the ones before it have left; prints as it goes.

    Returns:
      what the report says in short, if that is among the parts.

    Raises:
      InputError: scikit-learn is missing, or the workdir belongs to another recipe.
    """
    folder = pathlib.Path(workdir)
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


def _pretrain(folder: pathlib.Path, recipe: Recipe) -> None:
    workdir = stages.run_cpt(folder, recipe)
    shares = evaluation.read_unseen(workdir, "test", folder / "answers" / "reading.json", recipe.seed)
    print(f"CPT reads unseen digits: {', '.join(f'{what} {share:.2%}' for what, share in shares.items())}", flush=True)


def _test(folder: pathlib.Path, recipe: Recipe) -> None:
    for name in report.MODELS:
        if name in ("flash", "random_router"):
            said = vico.test(folder, name, recipe)
        else:
            said = evaluation.test(folder / name, folder, name)
        print(f"{name}: {evaluation.score(said)[-1].accuracy:.2%} of {len(said)}", flush=True)


def explore(answerer: Answerer, data: pathlib.Path, count: int, recipe: Recipe = RECIPE) -> str:
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
