"""A model that has seen squares move says of new videos which way they go: minutes long, for `make soak`."""

import json
import random

import pytest
from PIL import Image

import internvl_jax as ivl
from configs.models import sizes
from internvl_jax.data import get_template, train_bpe
from internvl_jax.inference import answer_many, message
from internvl_jax.training import train
from internvl_jax.training.run import hooks
from tests import forks
from tests.training import toy

SIDE, SQUARE, FRAMES = 12, 4, 8
QUESTION, WAYS = "which way?", {"left": -1, "right": 1}
SHOWN, VOCABULARY = 4, 640  # frames of a video; tokens


def film(path, way, rng):
    """A GIF of a square that moves a pixel a frame, from where it may begin so as to stay in the picture."""
    step, reach = WAYS[way], FRAMES - 1
    x, y = rng.randint(0, SIDE - SQUARE - reach), rng.randint(0, SIDE - SQUARE)
    start = x if step > 0 else x + reach
    frames = []
    for number in range(FRAMES):
        frames.append(Image.new("RGB", (SIDE, SIDE), (20, 20, 20)))
        frames[-1].paste((240, 240, 240), (start + step * number, y, start + step * number + SQUARE, y + SQUARE))
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100)


def write(folder, count):
    """Released lines about `count` videos, their meta file, and a tokenizer."""
    rng, lines = random.Random(0), []
    (folder / "films").mkdir(parents=True)
    for number in range(count):
        way = rng.choice(list(WAYS))
        film(folder / "films" / f"{number}.gif", way, rng)
        turns = [("human", f"<video>\n{QUESTION}"), ("gpt", way)]
        turns = [{"from": role, "value": value} for role, value in turns]
        lines.append(json.dumps({"id": number, "video": f"{number}.gif", "conversations": turns}))
    (folder / "films.jsonl").write_text("\n".join(lines) + "\n")
    entry = {"root": str(folder / "films"), "annotation": str(folder / "films.jsonl"), "length": count}
    entry |= {"min_num_frame": SHOWN, "max_num_frame": SHOWN}
    (folder / "meta.json").write_text(json.dumps({"films": entry}))
    (folder / "tokenizer").mkdir()
    said = [
        QUESTION,
        *WAYS,
        "Frame-1: Frame1: Frame-2: Frame2: Frame-3: Frame3: ",
        get_template("internvl2_5").default_system,
    ]
    train_bpe(said * 4, VOCABULARY).save(folder / "tokenizer")


@pytest.mark.soak
def test_a_model_says_which_way_a_square_moves(tmp_path):
    write(tmp_path, 400)
    model = sizes.like(toy.MODEL, {}, {"vocab": VOCABULARY + 8})
    config = toy.config(tmp_path, tmp_path / "run", model, steps=600, save_every=600, log_every=50, mesh="fsdp=8")
    config.data.token_budget, config.data.tile_budget, config.data.weighting = 96, SHOWN, "token"
    config.optim.learning_rate = 2e-3
    train(config)
    losses = [line["loss"] for line in hooks.read_metrics(tmp_path / "run")]
    assert losses[-1] < 0.1 < losses[0], losses
    rng, asked, wanted = random.Random(1), list[list[dict]](), []
    for number in range(40):
        wanted.append(rng.choice(list(WAYS)))
        film(tmp_path / f"new{number}.gif", wanted[-1], rng)
        shown = {"type": "video", "video": str(tmp_path / f"new{number}.gif"), "num_frames": SHOWN}
        asked.append([message(QUESTION, [shown])])
    model, processor = ivl.load(tmp_path / "run", "float32")
    said = answer_many(model, processor, asked, 40)
    right = sum(text == way for text, way in zip(said, wanted, strict=True))
    assert right >= 38, said
    asked = [f"--checkpoint={tmp_path}/run", f"--video={tmp_path}/new0.gif", f"--num_frames={SHOWN}"]
    done = forks.python("-m", "launch.chat", *asked, f"--prompt={QUESTION}")
    assert done.stdout.strip() == said[0], done.stderr
