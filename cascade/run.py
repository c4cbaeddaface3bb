"""The cascade's stages from nothing on; killed and started again they go on where they were.

1. Boards, questions and chains are made (`training_data`).
2. CPT: a tiny model learns from random weights to read digits. SFT: from few chains of thought it learns to answer.
3. A model is evaluated: greedy answers to every question of a file, by kind.
"""

import pathlib
import sys

from tqdm import tqdm

from cascade import evaluation, training_data
from cascade.evaluation import Answerer, Said
from cascade.recipe import RECIPE, Recipe, Stage
from configs.experiments import cpt, sft
from internvl_jax import training
from internvl_jax.inference.load import load
from internvl_jax.training.config import Group, TrainConfig


def make_data(folder: pathlib.Path, recipe: Recipe = RECIPE) -> pathlib.Path:
    """All boards and questions; returns their folder."""
    with _bar("drawing boards", 7) as bar:
        training_data.write(folder / "data", recipe, progress=bar.update)
    return folder / "data"


def run_cpt(folder: pathlib.Path, recipe: Recipe = RECIPE) -> pathlib.Path:
    """CPT from random weights; returns its workdir."""
    return _train(cpt.get_config("tiny"), recipe.cpt, folder, "cpt", "", recipe)


def run_sft(folder: pathlib.Path, recipe: Recipe = RECIPE) -> pathlib.Path:
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


def _bar(what: str, total: int) -> tqdm:
    """A progress bar on a terminal, one line elsewhere."""
    if not sys.stderr.isatty():
        print(f"{what}: {total}", file=sys.stderr, flush=True)
    return tqdm(total=total, desc=what, file=sys.stderr, disable=None)
