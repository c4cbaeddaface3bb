"""The demo from nothing to answers; killed and started again it goes on where it was.

1. Training data is made from the training split (`training_data`).
2. CPT: the tiny model learns from random weights to caption pictures. SFT: it goes on to answer questions.
3. It answers every test question by generation; accuracy, curves and examples are written to WORKDIR/report.
4. `launch.chat` answers one question about one picture, as anybody would ask it.
"""

import importlib.util
import pathlib
import shlex
import subprocess
import sys
from typing import Any

from tqdm import tqdm

from configs.experiments import cpt, sft
from demo import easy_vqa, report, training_data
from demo.recipe import RECIPE, DemoRecipe, DemoStage
from demo.report import Answered
from internvl_jax import training
from internvl_jax.errors import InputError
from internvl_jax.inference import SamplingParams, answer_many, load
from internvl_jax.training import Group, TrainConfig, hooks

ANSWER_TOKENS = 8  # answers are one token and a stop


def run(workdir: str, recipe: DemoRecipe = RECIPE) -> dict[str, Any]:
    """The whole demo; prints as it goes.

    Returns:
      accuracy over all test questions, their number n, train_seconds.

    Raises:
      InputError: the package easy-vqa is missing, or the workdir belongs to another recipe.
    """
    folder = pathlib.Path(workdir)
    if importlib.util.find_spec("easy_vqa") is None:
        raise InputError("the demo needs the package easy-vqa; install it with: pip install easy-vqa")
    with _bar("repainting pictures", recipe.variants) as bar:
        training_data.write(folder / "data", recipe, progress=bar.update)
    pretrained = _train(cpt.get_config("tiny"), recipe.cpt, folder, "cpt", init_from="", seed=recipe.seed)
    tuned = _train(sft.get_config("tiny"), recipe.sft, folder, "sft", init_from=str(pretrained), seed=recipe.seed)
    stages = {"CPT: captions": pretrained, "SFT: questions": tuned}
    answered = _answer(tuned)
    found = report.write(folder / "report", stages, answered, recipe.seed)
    print(f"\n{report.table(found)}\n\nreport: {folder / 'report'}\n", flush=True)
    _chat(tuned, answered[0].question)
    seconds = sum(train_seconds(stage) for stage in stages.values())
    return {"accuracy": round(found[-1].accuracy, 4), "n": found[-1].n, "train_seconds": round(seconds)}


def train_seconds(workdir: pathlib.Path) -> float:
    """Seconds of all steps of a stage, compilation included, over all restarts."""
    step = total = 0
    for line in hooks.read_metrics(workdir):
        total += (line["step"] - step) * line["step_seconds"]
        step = line["step"]
    return total


def _train(
    config: TrainConfig, stage: DemoStage, folder: pathlib.Path, name: str, init_from: str, seed: int
) -> pathlib.Path:
    """Runs a stage to its end and returns its workdir; does nothing if it has ended before."""
    data, workdir = folder / "data", folder / name
    config.data.meta, config.data.tokenizer = str(data / f"{name}.json"), str(data / "tokenizer")
    config.data.token_budget, config.data.tile_budget = stage.token_budget, stage.tile_budget
    config.optim.learning_rate, config.optim.warmup_ratio, config.optim.beta2 = stage.learning_rate, 0.05, stage.beta2
    groups = []
    for part, rate in ((r"^vit\.", stage.vit), (r"^lm\.layers\.", stage.lm_layers)):
        groups += [Group(rf"{part}.*(\.bias|norm\w*\.scale)$", rate, weight_decay=0.0), Group(part, rate)]
    config.optim.groups = (*groups, *config.optim.groups)
    config.run.steps, config.run.rows, config.run.seed = stage.steps, stage.rows, seed
    config.run.workdir, config.run.init_from = str(workdir), init_from
    config.run.save_every, config.run.log_every = 250, 20
    training.train(config)
    return workdir


def _answer(workdir: pathlib.Path) -> list[Answered]:
    """The model's answers to all test questions, each asked alone."""
    model, processor = load(workdir, dtype="float32")
    questions, pictures = easy_vqa.questions("test"), easy_vqa.image_paths("test")
    conversations = ([_message(question, pictures)] for question in questions)
    with _bar("answering questions", len(questions)) as bar:
        said = answer_many(
            model,
            processor,
            conversations,
            batch_size=128,
            sampling=SamplingParams(max_new_tokens=ANSWER_TOKENS),
            progress=lambda done: bar.update(done - bar.n),
        )
    return [Answered(question, text) for question, text in zip(questions, said, strict=True)]


def _bar(what: str, total: int) -> tqdm:
    """A progress bar on a terminal, one line elsewhere."""
    if not sys.stderr.isatty():
        print(f"{what}: {total}", file=sys.stderr, flush=True)
    return tqdm(total=total, desc=what, file=sys.stderr, disable=None)


def _message(question: easy_vqa.EasyQuestion, pictures: dict[int, pathlib.Path]) -> dict[str, Any]:
    content = [{"type": "image", "image": pictures[question.image]}, {"type": "text", "text": question.text}]
    return {"role": "user", "content": content}


def _chat(workdir: pathlib.Path, question: easy_vqa.EasyQuestion) -> None:
    """Asks through the command line, in a process of its own."""
    picture = easy_vqa.image_paths("test")[question.image]
    flags = [f"--checkpoint={workdir}", f"--image={picture}", f"--prompt={question.text}"]
    flags.append(f"--max_new_tokens={ANSWER_TOKENS}")
    print(f"$ python -m launch.chat {shlex.join(flags)}", flush=True)
    subprocess.run([sys.executable, "-m", "launch.chat", *flags], check=True)
