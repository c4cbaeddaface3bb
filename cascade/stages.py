"""The stages: what each learns from and begins with, and the settings that the recipe gives it.

Every function runs its stage to its end and returns its folder; killed and called again it goes on where it was, and
one that has ended stays as it is.
"""

import dataclasses
import importlib.util
import json
import pathlib
import re
import sys

from cascade import progress, training_data
from cascade.recipe import CascadeRecipe, Training
from configs.experiments import consistency, cpt, gspo, mpo, router, sft
from internvl_jax import training
from internvl_jax.data import open_prompts
from internvl_jax.errors import InputError
from internvl_jax.grading import Graders
from internvl_jax.inference import load
from internvl_jax.making import pairs
from internvl_jax.training import Group, TrainConfig
from internvl_jax.validation import read_lines

_GRADING_SECONDS = 5.0  # has no effect: comparing letters needs no processes of its own


def make_data(folder: pathlib.Path, recipe: CascadeRecipe) -> pathlib.Path:
    """All boards and questions.

    Raises:
      InputError: scikit-learn is missing.
    """
    if importlib.util.find_spec("sklearn") is None:
        raise InputError("the cascade needs the package scikit-learn; install it with: pip install scikit-learn")
    with progress.bar("drawing boards", len(training_data.FILES)) as shown:
        training_data.write(folder / "data", recipe.data, progress=shown.update)
    return folder / "data"


def run_cpt(folder: pathlib.Path, recipe: CascadeRecipe) -> pathlib.Path:
    """CPT from random weights."""
    return train(cpt.get_config("tiny"), recipe.cpt, folder, "cpt", "", recipe)


def run_sft(folder: pathlib.Path, recipe: CascadeRecipe) -> pathlib.Path:
    """SFT from CPT's end."""
    return train(sft.get_config("tiny"), recipe.sft, folder, "sft", "cpt", recipe)


def make_pairs(folder: pathlib.Path, recipe: CascadeRecipe) -> pathlib.Path:
    """Right and wrong responses of the SFT model to the prompts of reinforcement."""
    out, config = folder / "pairs", recipe.pairs
    if out.exists():
        return out
    prompts = open_prompts(str(folder / "data" / "rl.jsonl"))
    with (
        progress.bar("questions for pairs", len(prompts)) as shown,
        Graders(config.reward, _GRADING_SECONDS, workers=0) as graders,
    ):
        advance = lambda done, _: shown.update(done - shown.n)
        summary = pairs.make_pairs(*load(folder / "sft", dtype="float32"), prompts, config, out, graders.grade, advance)
    print(f"pairs: {json.dumps(summary)}", file=sys.stderr, flush=True)
    return out


def run_mpo(folder: pathlib.Path, recipe: CascadeRecipe) -> pathlib.Path:
    """MPO on the pairs, from SFT's end, which is the reference too."""
    config = mpo.get_config("tiny")
    config.data.meta = str(folder / "pairs" / pairs.META)
    return train(config, recipe.mpo, folder, "mpo", "sft", recipe)


def run_gspo(folder: pathlib.Path, name: str, init_from: str, recipe: CascadeRecipe) -> pathlib.Path:
    """GSPO from another stage's end; whatever that is, the prompts and their order are the same.

    As in the paper, the responses that were sampled for pairs say which prompts are neither too easy nor too hard.
    """
    config = gspo.get_config("tiny")
    config.data.meta, config.optim.schedule = str(folder / "data" / "rl.jsonl"), "cosine"
    return train(config, recipe.gspo, folder, name, init_from, recipe, accuracies=folder / "pairs" / pairs.ACCURACIES)


def _write_answers(folder: pathlib.Path) -> None:
    """data/answers.jsonl: right answers that the GSPO model gave, each prompt's latest one, as conversations.

    ViCO keeps what a model says as it is, so it has to be compared where that model goes: on answers of the SFT model
    what GSPO had won was lost again.
    """
    path, answers = folder / "data" / "answers.jsonl", {}
    if path.exists():
        return
    for rollouts in sorted((folder / "gspo" / "rollouts").glob("*.jsonl")):
        for _, group in read_lines(rollouts):
            right = [each["text"] for each in group["responses"] if each["accuracy"] == 1]
            if right:
                answers[int(group["prompt"].rpartition(":")[2])] = right[0]
    lines = []
    prompts = [prompt for _, prompt in read_lines(folder / "data" / "rl.jsonl")]
    for number, answer in sorted(answers.items()):
        prompt = prompts[number - 1]
        turns = [("human", f"<image>\n{prompt['question']}"), ("gpt", answer)]
        conversation = [{"from": speaker, "value": text} for speaker, text in turns]
        line = {"image": prompt["image"].removeprefix("images/"), "conversations": conversation}
        lines.append(json.dumps(line) + "\n")
    progress.write_whole(path, "".join(lines))


def run_consistency(folder: pathlib.Path, recipe: CascadeRecipe) -> pathlib.Path:
    """ViCO's first stage from the GSPO model, which is the reference too."""
    _write_answers(folder)
    config = consistency.get_config("tiny")
    return train(config, recipe.consistency, folder, "consistency", "gspo", recipe)


def run_router(folder: pathlib.Path, recipe: CascadeRecipe) -> pathlib.Path:
    """ViCO's second stage; the reference is still the GSPO model."""
    config = router.get_config("tiny")
    return train(config, recipe.router, folder, "router", "consistency", recipe, reference=folder / "gspo")


def train(
    config: TrainConfig,
    stage: Training,
    folder: pathlib.Path,
    name: str,
    init_from: str,
    recipe: CascadeRecipe,
    **paths: pathlib.Path,
) -> pathlib.Path:
    """Runs a stage to its end; does nothing if it has ended before.

    Args:
      config: the stage's experiment, for a tiny model.
      name: the name of the stage, and of its workdir in the folder.
      init_from: the name of the stage before it; "" for random weights.
      paths: settings of the stage that the recipe can't know.
    """
    data = folder / "data"
    config.model = dataclasses.replace(recipe.model, flash=recipe.flash if config.model.flash else None)
    if stage.files:
        config.data.meta = str(folder / f"{name}.json")
        meta = training_data.meta(data, stage.files)
        progress.write_whole(pathlib.Path(config.data.meta), json.dumps(meta, indent=2) + "\n")
    config.data.tokenizer = str(data / "tokenizer")
    config.data.token_budget, config.data.tile_budget = stage.token_budget, stage.tile_budget
    config.data.min_tiles, config.data.max_tiles, config.data.thumbnail = 1, 6, False
    config.optim.learning_rate, config.optim.beta2 = stage.learning_rate, stage.beta2
    config.optim.warmup_ratio = stage.warmup_ratio
    config.optim.groups = (*_groups(stage), *config.optim.groups)
    if stage.settings is not None:
        config.stage = dataclasses.replace(stage.settings, **{key: str(path) for key, path in paths.items()})
    config.run.steps, config.run.rows, config.run.micro_batches = stage.steps, stage.rows, stage.micro_batches
    config.run.workdir, config.run.init_from = str(folder / name), str(folder / init_from) if init_from else ""
    config.run.seed = recipe.seed
    config.run.save_every, config.run.log_every = max(1, min(250, stage.steps // 8)), 20
    training.train(config)
    return folder / name


def _groups(stage: Training) -> list[Group]:
    groups = []
    for part, rate in stage.rates:
        path = rf"^{re.escape(part)}\."
        if rate:  # no decay on biases and norms, as for all other parts
            groups.append(Group(rf"{path}.*(\.bias|norm\w*\.scale)$", rate, weight_decay=0.0))
        groups.append(Group(path, rate, frozen=not rate))
    return groups
