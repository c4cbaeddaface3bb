"""The cascade's stages from nothing on; killed and started again they go on where they were.

1. Boards, questions and chains are made (`training_data`).
2. CPT: a tiny model learns from random weights to read digits. SFT: from few chains of thought it learns to answer.
3. The model answers all test questions, greedily, and is scored by kind.
4. `explore` is for development: what sampling finds that greedy answers miss, and whether reading or reasoning fails.
"""

import importlib.util
import json
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Literal

from tqdm import tqdm

from cascade import evaluation, training_data
from cascade.boards import Split
from cascade.evaluation import Answerer, Said
from cascade.recipe import RECIPE, Recipe, Stage
from configs.experiments import cpt, sft
from internvl_jax import training
from internvl_jax.errors import InputError
from internvl_jax.inference.load import load
from internvl_jax.training.config import Group, TrainConfig

Part = Literal["data", "cpt", "sft", "test"]
PARTS: tuple[Part, ...] = ("data", "cpt", "sft", "test")
SAMPLES = 16  # of a question, in `explore`
READINGS = 2000  # single digits of either size


def run(workdir: str, parts: Sequence[Part] = PARTS, recipe: Recipe = RECIPE) -> None:
    """Runs parts of the cascade, each on what the ones before it have left; prints as it goes.

    Raises:
      InputError: scikit-learn is missing, or the workdir belongs to another recipe.
    """
    folder = pathlib.Path(workdir)
    if "data" in parts:
        make_data(folder, recipe)
    if "cpt" in parts:
        shares = read_unseen(run_cpt(folder, recipe), "test", folder / "answers" / "reading.json", recipe.seed)
        print(f"CPT reads unseen digits: {', '.join(f'{what} {share:.2%}' for what, share in shares.items())}")
    if "sft" in parts:
        run_sft(folder, recipe)
    if "test" in parts:
        said = evaluate(folder / "sft", folder / "data" / "test.jsonl", folder / "answers" / "sft.jsonl")
        print(f"\n{evaluation.table(evaluation.score(said))}\n", flush=True)


def make_data(folder: pathlib.Path, recipe: Recipe) -> pathlib.Path:
    """All boards and questions; returns their folder."""
    if importlib.util.find_spec("sklearn") is None:
        raise InputError("the cascade needs the package scikit-learn; install it with: pip install scikit-learn")
    with _bar("drawing boards", len(training_data.FILES)) as bar:
        training_data.write(folder / "data", recipe.data, progress=bar.update)
    return folder / "data"


def run_cpt(folder: pathlib.Path, recipe: Recipe) -> pathlib.Path:
    """CPT from random weights; returns its workdir."""
    return _train(cpt.get_config("tiny"), recipe.cpt, folder, "cpt", "", recipe)


def run_sft(folder: pathlib.Path, recipe: Recipe) -> pathlib.Path:
    """SFT from CPT's end; returns its workdir."""
    return _train(sft.get_config("tiny"), recipe.sft, folder, "sft", str(folder / "cpt"), recipe)


def _train(
    config: TrainConfig, stage: Stage, folder: pathlib.Path, name: str, init_from: str, recipe: Recipe
) -> pathlib.Path:
    """Runs a stage to its end and returns its workdir; does nothing if it has ended before."""
    data, workdir = folder / "data", folder / name
    config.model = recipe.model
    config.data.meta, config.data.tokenizer = str(data / f"{name}.json"), str(data / "tokenizer")
    config.data.token_budget, config.data.tile_budget = stage.token_budget, stage.tile_budget
    config.data.min_tiles, config.data.max_tiles, config.data.thumbnail = 1, 6, False
    config.optim.learning_rate, config.optim.warmup_ratio, config.optim.beta2 = stage.learning_rate, 0.05, stage.beta2
    groups = []
    for part, rate in ((r"^vit\.", stage.vit), (r"^lm\.layers\.", stage.lm_layers)):
        if rate:
            groups.append(Group(rf"{part}.*(\.bias|norm\w*\.scale)$", rate, weight_decay=0.0))
        groups.append(Group(part, rate, frozen=not rate))
    config.optim.groups = (*groups, *config.optim.groups)
    config.run.steps, config.run.rows, config.run.seed = stage.steps, stage.rows, recipe.seed
    config.run.workdir, config.run.init_from = str(workdir), init_from
    config.run.save_every, config.run.log_every = 250, 50
    training.train(config)
    return workdir


def read_unseen(workdir: pathlib.Path, split: Split, answers: pathlib.Path, seed: int) -> dict[str, float]:
    """How well a pretrained model reads digits of a split (`evaluation.reading`), kept in `answers`."""
    if not answers.exists():
        shares = evaluation.reading(Answerer(*load(workdir, dtype="float32")), split, READINGS, seed)
        answers.parent.mkdir(parents=True, exist_ok=True)
        partial = answers.with_suffix(".partial")
        partial.write_text(json.dumps(shares) + "\n")
        os.replace(partial, answers)
    return json.loads(answers.read_text())


def evaluate(workdir: pathlib.Path, prompts: pathlib.Path, answers: pathlib.Path) -> list[Said]:
    """Greedy answers of a model to a prompt file, written to `answers`; read from there if they are there."""
    if answers.exists():
        return evaluation.read_answers(answers)
    answerer, asked = Answerer(*load(workdir, dtype="float32")), evaluation.read_questions(prompts)
    with _bar(f"answering questions of {prompts.stem}", len(asked)) as bar:
        said = answerer.ask(asked, progress=lambda done: bar.update(done - bar.n))
    answers.parent.mkdir(parents=True, exist_ok=True)
    evaluation.write_answers(said, answers)
    return said


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


def _bar(what: str, total: int) -> tqdm:
    """A progress bar on a terminal, one line elsewhere."""
    if not sys.stderr.isatty():
        print(f"{what}: {total}", file=sys.stderr, flush=True)
    return tqdm(total=total, desc=what, file=sys.stderr, disable=None)
