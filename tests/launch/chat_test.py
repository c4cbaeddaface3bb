"""launch.chat and launch.evaluate from the command line, on a model that knows nothing."""

import dataclasses
import json

import numpy as np
import PIL.Image
import pytest

from configs.models.sizes import get
from internvl_jax import data
from internvl_jax.data.media import tiling
from internvl_jax.inference import save_model
from internvl_jax.models import InternVL, Runtime
from internvl_jax.sharding import structure
from tests import forks


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    directory = tmp_path_factory.mktemp("chat") / "model"
    config = get("tiny")
    tokenizer = data.train_bpe(["what is it"], 300)
    config = dataclasses.replace(config, image_token_id=tokenizer.image_context)
    image = tiling.ImageConfig(64, config.tokens_per_tile, 1, 1, True, False, tiling.DEFAULT_MAX_PIXELS)
    rng = np.random.default_rng(0)
    specs = structure(InternVL, config, Runtime())[1]
    params = {path: rng.normal(0, 0.1, spec.shape).astype(np.float32) for path, spec in specs.items()}
    params["lm.head.weight"][[tokenizer.im_end, tokenizer.eos]] = 0  # it knows nothing, but says something
    save_model(directory, params, config, data.Processor(image, tokenizer, data.get_template("internvl2_5")))
    PIL.Image.new("RGB", (64, 64), "red").save(directory / "a.png")
    lines = [{"image": "a.png", "question": "what is it", "answer": "x"}] * 3
    (directory / "data.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return directory


def launch(name, *arguments, stdin=""):
    return forks.python("-m", f"launch.{name}", *arguments, stdin=stdin)


def test_a_prompt_and_a_conversation(checkpoint):
    options = (f"--checkpoint={checkpoint}", "--max_new_tokens=5")
    done = launch("chat", *options, f"--image={checkpoint}/a.png", "--prompt=what is it")
    assert done.returncode == 0 and done.stdout.strip(), done.stderr
    lines = ["/image nowhere.png", f"/image '{checkpoint}/a.png'", "what is it", "/help", "/halp", "/quit", "never"]
    talk = launch("chat", *options, stdin="\n".join(lines))
    assert talk.returncode == 0
    assert talk.stdout.strip() == done.stdout.strip()
    assert "nowhere.png" in talk.stderr and "commands:" in talk.stderr
    assert "no command /halp" in talk.stderr and talk.stderr.startswith(f"loading {checkpoint} ...\n")
    assert talk.stderr.count("compiling ...\n") == 1


def test_accuracy_is_the_last_line(checkpoint, tmp_path):
    options = (f"--checkpoint={checkpoint}", f"--data={checkpoint}/data.jsonl", "--max_new_tokens=3")
    done = launch("evaluate", *options, f"--out={tmp_path}/answers.jsonl", "--temperature=0.5", "--max_tiles=1")
    report = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == 0 and report.keys() == {"accuracy", "n", "tokens", "seconds"} and report["n"] == 3
    written = (tmp_path / "answers.jsonl").read_text().splitlines()
    assert [json.loads(line)["answer"] for line in written] == ["x"] * 3


def test_errors_are_one_sentence(checkpoint, tmp_path):
    for arguments in (
        ("chat", f"--checkpoint={tmp_path}", "--prompt=a"),
        ("chat", f"--checkpoint={checkpoint}", "--top_p=2", "--prompt=a"),
        ("chat", f"--checkpoint={checkpoint}", "--absolute_threshold=0.5", "--prompt=a"),
        ("chat", f"--checkpoint={checkpoint}", "--image=nowhere.png", "--prompt=a"),
        ("chat", "--checkpoint=OpenGVLab/InternVL3_5-1B", "--prompt=a"),
        ("evaluate", f"--checkpoint={checkpoint}", f"--data={checkpoint}/data.jsonl", f"--out={checkpoint}/a.png"),
        ("evaluate", f"--checkpoint={checkpoint}", f"--data={checkpoint}/data.jsonl", "--grader=kind"),
    ):
        done = launch(*arguments)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
