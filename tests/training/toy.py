"""A toy run for the tests of this folder: a few colours to name, and a model whose sizes are pairwise different."""

import dataclasses
import json
import pathlib
import random

import jax
from PIL import Image

import internvl_jax as ivl
from configs.models import sizes
from internvl_jax.data import open_prompts
from internvl_jax.data.text.tokenizer import train_bpe
from internvl_jax.grading import Score
from internvl_jax.making import PairConfig, assist, make_pairs
from internvl_jax.models import UNUSED_PARTS, FlashConfig, InternVLConfig
from internvl_jax.models.config import MoeConfig, YarnConfig
from internvl_jax.sharding import make_mesh
from internvl_jax.training import (
    ConsistencyConfig,
    DataConfig,
    Group,
    GspoConfig,
    LoraGroup,
    LoraSettings,
    MpoConfig,
    OptimConfig,
    RouterConfig,
    RunConfig,
    TrainConfig,
)

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220)}

# Divisible by the meshes of the tests (fsdp 8, tensor 2), otherwise different from each other.
MODEL = sizes.like(
    sizes.TINY,
    {"image_size": 12, "patch_size": 3, "width": 24, "layers": 2, "heads": 3, "mlp": 40, "init_std": 0.05},
    {"vocab": 328, "width": 32, "layers": 3, "kv_heads": 2, "head_width": 10, "mlp": 56, "init_std": 0.05},
    image_token_id=-1,
)
LORA = LoraSettings(
    rank=3,
    alpha=6.0,
    targets=r"^(lm|vit)\.layers\.\d+\.(attn|mlp)\.",
    whole=r"^projector\.",
    groups=(LoraGroup(r"attn\.q$", rank=2), LoraGroup(r"layers\.1\.mlp", rank=1, alpha=2.0)),
)
_EXPERTS = {"moe": MoeConfig(experts=8, per_token=3), "mlp": 20}
MOE = sizes.like(MODEL, {}, _EXPERTS)
_YARN = YarnConfig(4.0, 32.0, 1.0, positions=64)
GPT_OSS = sizes.like(MODEL, {}, {"family": "gpt_oss", "window": 7, "yarn": _YARN, **_EXPERTS})


def write_data(folder: pathlib.Path) -> None:
    """Pictures, JSONL, meta file and tokenizer: 40 samples with one picture, 5 with two, 15 without."""
    rng = random.Random(0)
    images = folder / "images"
    images.mkdir(parents=True)
    lines, texts = [], []
    for number in range(60):
        count = 0 if number % 4 == 3 else 2 if number % 8 == 0 else 1
        names = [f"{number}_{part}.png" for part in range(count)]
        answers = [rng.choice(list(COLOURS)) for _ in names]
        for name, answer in zip(names, answers, strict=True):
            pixels = tuple(min(255, max(0, value + rng.randint(-20, 20))) for value in COLOURS[answer])
            Image.new("RGB", (12, 12), pixels).save(images / name)
        question = "<image>\n" * count + ("what colours?" if count else "say something")
        answer = " ".join(answers) if count else "hello " * rng.randint(1, 7)
        turns = [("system", "Name colours."), ("human", question), ("gpt", answer)]
        line = {"id": number, "conversations": [{"from": role, "value": value} for role, value in turns]}
        if count == 1:
            line |= {"image": names[0], "width": 12, "height": 12}
        elif count:
            line |= {"image": names, "width_list": [12, 12], "height_list": [12, 12]}
        lines.append(json.dumps(line))
        texts += [question, answer]
    (folder / "toy.jsonl").write_text("\n".join(lines) + "\n")
    entry = {"root": str(images), "annotation": str(folder / "toy.jsonl"), "data_augment": True, "repeat_time": 1}
    (folder / "meta.json").write_text(json.dumps({"toy": {**entry, "length": len(lines)}}))
    (folder / "tokenizer").mkdir()
    train_bpe(texts, 320).save(folder / "tokenizer")


def config(folder: pathlib.Path, workdir: pathlib.Path, model: InternVLConfig = MODEL, **run) -> TrainConfig:
    """A run over `write_data(folder)`; `run` overrides fields of its RunConfig."""
    defaults = {"steps": 6, "rows": 8, "dtype": "float32", "remat": "none", "save_every": 2, "log_every": 1, "seed": 5}
    return TrainConfig(
        model=model,
        objective="ntp",
        data=DataConfig(
            meta=str(folder / "meta.json"),
            tokenizer=str(folder / "tokenizer"),
            min_tiles=1,
            max_tiles=1,
            thumbnail=False,
            token_budget=101,
            tile_budget=5,
            weighting="square",
        ),
        optim=OptimConfig(
            learning_rate=3e-3, warmup_ratio=0.1, weight_decay=0.05, beta1=0.9, beta2=0.99, eps=1e-8, clip_norm=1.0
        ),
        run=RunConfig(workdir=str(workdir), **{**defaults, **run}),
    )


def with_run(config: TrainConfig, **run) -> TrainConfig:
    return dataclasses.replace(config, run=dataclasses.replace(config.run, **run))


def lora_config(folder: pathlib.Path, workdir: pathlib.Path, **run) -> TrainConfig:
    """Adapters of several ranks with dropout, the projector whole, beside the model in `folder / "start"`."""
    lora = dataclasses.replace(LORA, dropout=0.1)
    return dataclasses.replace(config(folder, workdir, init_from=str(folder / "start"), **run), lora=lora)


def write_pairs(folder: pathlib.Path) -> None:
    """Preference pairs about pictures of one colour: that colour, or another; 20 with a picture, 4 without."""
    rng = random.Random(1)
    lines = []
    for number in range(24):
        right, wrong = rng.sample(list(COLOURS), 2)
        line = {
            "system_prompt": "Name colours.",
            "question": "<image>\nwhat colours?",
            "chosen": right,
            "rejected": f"{wrong} {wrong}",
        }
        if number % 6 == 5:
            line["question"] = "say something"
        else:
            line |= {"image": f"p{number}.png", "width": 12, "height": 12}
            Image.new("RGB", (12, 12), COLOURS[right]).save(folder / "images" / f"p{number}.png")
        lines.append(json.dumps(line))
    (folder / "pairs.jsonl").write_text("\n".join(lines) + "\n")
    entry = {"root": str(folder / "images"), "annotation": str(folder / "pairs.jsonl"), "length": len(lines)}
    (folder / "pairs.json").write_text(json.dumps({"pairs": entry}))


def mpo_config(folder: pathlib.Path, workdir: pathlib.Path, model: InternVLConfig = MODEL, **run) -> TrainConfig:
    """Preference optimisation over `write_pairs(folder)`, from the model in `folder/start`."""
    made = config(folder, workdir, model, **{"init_from": str(folder / "start"), **run})
    # Three quarters of the rows take a pair each, the rest stay empty.
    made.objective, made.stage = "mpo", MpoConfig(pairs=made.run.rows * 3 // 4)
    made.data.meta, made.data.weighting, made.data.token_budget = str(folder / "pairs.json"), "token", 101
    return made


def write_prompts(folder: pathlib.Path) -> None:
    """Questions about pictures of one colour, 10 with a picture and 2 without."""
    lines = []
    for number in range(12):
        colour = list(COLOURS)[number % 3]
        line = {"system_prompt": "Name colours.", "question": "<image>\nwhat colours?", "answer": colour}
        if number % 6 == 5:
            line["question"] = "say something"
        else:
            line["image"] = f"q{number}.png"
            Image.new("RGB", (12, 12), COLOURS[colour]).save(folder / "images" / line["image"])
        lines.append(json.dumps(line))
    (folder / "prompts.jsonl").write_text("\n".join(lines) + "\n")
    entry = {"root": str(folder / "images"), "annotation": str(folder / "prompts.jsonl")}
    (folder / "prompts.json").write_text(json.dumps({"prompts": entry}))


def vowels(response: str, truth: str) -> Score:
    """A reward that a model without knowledge can learn: few of the characters that it writes are no vowels."""
    share = sum(character in "aeiou" for character in response) / max(1, len(response))
    return Score(share, float(share > 0.5), float(truth in response))


def gspo_config(folder: pathlib.Path, workdir: pathlib.Path, model: InternVLConfig = MODEL, **run) -> TrainConfig:
    """Reinforcement of `vowels` over `write_prompts(folder)`: 2 steps of 2 prompts x 4 responses a rollout batch."""
    made = config(folder, workdir, model, **{"init_from": str(folder / "start"), "rows": 8, **run})
    made.objective = "gspo"
    made.stage = GspoConfig(
        prompts=4,
        group=4,
        mini_batch=2,
        sample_prompts=4,
        max_prompt_tokens=60,
        max_new_tokens=7,
        reward="tests.training.toy:vowels",
        grader_workers=0,
    )
    made.data.meta, made.data.weighting, made.data.token_budget = str(folder / "prompts.json"), "token", 173
    made.optim.groups = (Group(r"^vit\.", frozen=True), *made.optim.groups)
    made.optim.schedule, made.optim.warmup_ratio = "constant", 0.0
    return made


def gspo_within_config(folder: pathlib.Path, workdir: pathlib.Path, **run) -> TrainConfig:
    """As `gspo_config`, 4 steps of a prompt each a rollout batch: every other checkpoint stands within one. Responses
    are left to later batches, and weighed.
    """
    made = gspo_config(folder, workdir, **run)
    made.stage.mini_batch, made.stage.sample_prompts = 1, 3
    made.stage.ahead, made.stage.staleness, made.stage.importance_cap = 3, 2, 2.0
    return made


def make_some_pairs(folder: pathlib.Path, model: pathlib.Path, out: pathlib.Path, name: str) -> None:
    """Pairs for four of `write_prompts(folder)`, as the data set of that name, right at random; by all processes of a
    pod, on eight devices.
    """
    mesh = make_mesh({"data": 4, "tensor": 2})
    given = ivl.load(model, "float32", mesh)
    config = PairConfig("correctness", 4, 1.0, 0, 7, 60, 0.5, 5, 1.0, "stub", 0, 16, 5, 1, 0.0)
    if jax.process_index():
        assist(*given, config)
        return
    lines = (folder / "prompts.jsonl").read_text().splitlines()[:4]
    prompts = out.with_name("some_prompts.jsonl")
    prompts.write_text("\n".join(lines) + "\n")
    entry = {"root": str(folder / "images"), "annotation": str(prompts)}
    prompts.with_suffix(".json").write_text(json.dumps({name: entry}))
    grade = lambda texts, truths: [Score(0.0, float(len(text) % 2), 0.0) for text in texts]
    make_pairs(*given, open_prompts(prompts.with_suffix(".json")), config, out, grade)


# Released routers have 16 heads.
BASE = sizes.like(MODEL, {"width": 32, "heads": 4}, {})
FLASH = dataclasses.replace(BASE, flash=FlashConfig(0.0, 0.5, heads=16, dropout=0.0))


def write_boards(folder: pathlib.Path) -> None:
    """Pairs of pictures in either order: a blank one, and one of four colours, which the answer names."""
    rng = random.Random(2)
    (folder / "boards").mkdir()
    lines = []
    for number in range(200):
        board, answer = Image.new("RGB", (12, 12)), [rng.choice(list(COLOURS)) for _ in range(4)]
        for part, colour in enumerate(answer):
            corner = 6 * (part % 2), 6 * (part // 2)
            board.paste(COLOURS[colour], (*corner, corner[0] + 6, corner[1] + 6))
        board.save(folder / "boards" / f"{number}.png")
        names = rng.sample(["blank.png", f"{number}.png"], 2)
        turns = [("system", "Name colours."), ("human", "<image>\n<image>\nwhat?"), ("gpt", " ".join(answer))]
        line = {"conversations": [{"from": role, "value": value} for role, value in turns]}
        lines.append(json.dumps(line | {"image": names, "width_list": [12, 12], "height_list": [12, 12]}))
    Image.new("RGB", (12, 12)).save(folder / "boards" / "blank.png")
    (folder / "boards.jsonl").write_text("\n".join(lines) + "\n")
    entry = {"root": str(folder / "boards"), "annotation": str(folder / "boards.jsonl"), "repeat_time": 1}
    (folder / "boards.json").write_text(json.dumps({"boards": {**entry, "length": len(lines)}}))
    (folder / "tokenizer").mkdir()
    train_bpe(["what?", "Name colours.", " ".join(COLOURS)] * 9, 320).save(folder / "tokenizer")


def vico_config(folder: pathlib.Path, workdir: pathlib.Path, objective: str, start: str, **run) -> TrainConfig:
    """A stage over `write_boards(folder)`: the base model's next-token stage, or one of ViCO's from the model in
    `start`, with the base model in `folder/base` as reference.
    """
    length = {"ntp": 130, "consistency": 60, "router": 60}[objective]
    made = config(folder, workdir, BASE if objective == "ntp" else FLASH, **{"steps": length, "rows": 8, **run})
    made.objective, made.run.init_from = objective, str(start)
    made.data.meta, made.data.max_tiles = str(folder / "boards.json"), 1
    made.data.token_budget, made.data.tile_budget = 116, 4  # two samples: what a row costs grows with its square
    made.optim.learning_rate = 3e-3 if objective == "consistency" else 5e-3
    if objective != "ntp":
        made.data.weighting, reference = "sample", str(folder / "base")
        stages = {"consistency": ConsistencyConfig(reference), "router": RouterConfig(reference, window=97, share=0.47)}
        frozen = {"consistency": r"^router\.", "router": rf"^(?!router\.)|{UNUSED_PARTS}"}[objective]
        made.stage, made.optim.groups = stages[objective], (Group(frozen, frozen=True), *made.optim.groups)
    if objective == "router":
        made.data.token_budget *= 3
    return made


def consistency_config(folder: pathlib.Path, workdir: pathlib.Path, **run) -> TrainConfig:
    """From the base model in `folder/base`."""
    return vico_config(folder, workdir, "consistency", str(folder / "base"), **run)


def router_config(folder: pathlib.Path, workdir: pathlib.Path, **run) -> TrainConfig:
    """From the Flash model in `folder/flash`."""
    return vico_config(folder, workdir, "router", str(folder / "flash"), **run)
