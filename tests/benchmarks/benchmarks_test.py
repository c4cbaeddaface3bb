"""The benchmarks' own machinery, and our side of them on a small checkpoint; PyTorch's side needs its extra."""

import dataclasses
import json
import os
import sys

import numpy as np
import pytest

from benchmarks import convert, ours, stages, theirs, workload
from benchmarks.workers import Worker, in_turns, ratios
from configs.models import sizes
from internvl_jax.errors import InputError
from tests.programs import build

OPTIM = {"learning_rate": 1e-3, "weight_decay": 0.0, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "clip_norm": 1.0}
ECHO = """
import itertools, json, sys
from benchmarks.answering import serve
given = json.loads(sys.argv[1])
turns = itertools.count()

def load():
    if given["name"] == "absent":
        raise ImportError("install it first")
    print("this goes to stderr")
    return {"go": lambda: {"name": given["name"], "turn": next(turns)}, "stop": lambda: sys.exit(3)}

serve(load)
"""


@pytest.fixture
def echo(tmp_path, monkeypatch):
    (tmp_path / "echo.py").write_text(ECHO)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return lambda name: Worker(sys.executable, "echo", {"name": name})


def test_workers_answer_in_turns_after_a_warm_up(echo):
    workers = {name: echo(name) for name in ("first", "second")}
    answers = in_turns(workers, "go", rounds=2)
    for name, given in answers.items():
        assert [(answer["name"], answer["turn"]) for answer in given] == [(name, 1), (name, 2)]
        assert 0.005 < given[-1]["peak_gb"] < 50
    with pytest.raises(InputError, match="exit code 3"):
        workers["first"].ask("stop")
    workers["second"].close()


def test_a_worker_that_cannot_start_says_why(echo):
    with pytest.raises(InputError, match="install it first"):
        echo("absent")


def test_without_pytorch_the_sentence_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r"pip install '\.\[bench\]'.*--torch_python"):
        theirs.load({"task": "make"})


def test_ratios_are_of_medians():
    answers = {"ours": [{"seconds": s} for s in (1, 2, 9)], "theirs": [{"seconds": s} for s in (3, 100, 1)]}
    assert ratios(answers) == {"ours_s": 2, "theirs_s": 3, "ratio": 1.5}


def test_our_side_of_inference(golden):
    case = golden / "hf_qwen3"
    config = json.loads((case / "config.json").read_text())
    given = {"directory": str(case), "config": config, "dtype": "float32", "prompt": 21, "tiles": 3, "new": 5}
    actions = ours.load({"task": "inference", **given})
    assert actions["vision"]()["seconds"] > 0 and actions["prefill"]()["seconds"] > 0
    first, second = actions["decode"](), actions["decode"]()
    assert len(first["tokens"]) == 5 and first["tokens"] == second["tokens"]


def test_our_side_of_rollouts(golden):
    case = golden / "hf_qwen3"
    config = json.loads((case / "config.json").read_text())
    given = {"directory": str(case), "config": config, "prompt": 21, "tiles": 3, "group": 2, "new": 5}
    actions = ours.load({"task": "rollout", **given})
    drawn, greedy = actions["rollout"](), actions["greedy"]()
    assert drawn["seconds"] > 0 and len(drawn["tokens"]) == len(greedy["tokens"]) == 5
    assert len(actions["first"]()["tokens"]) == 1


def test_our_side_of_batches(golden):
    case = golden / "hf_qwen3"
    config = json.loads((case / "config.json").read_text())
    given = {
        "directory": str(case),
        "config": config,
        "requests": 3,
        "prompts": (20, 40),
        "answers": (2, 12),
        "rows": 2,
    }
    actions = ours.load({"task": "batch", **given})
    lengths = [new for _, _, new in workload.mixed(config, 3, (20, 40), (2, 12), turn=1)]
    first, second = actions["batch"](), actions["batch"]()
    assert [len(tokens) for tokens in second["tokens"]] == lengths and first["tokens"] != second["tokens"]
    late = actions["arrival"]()
    assert late["first_token_s"] >= late["longest_step_s"] > 0 and late["decode_s"] > 0


def test_our_side_of_training(golden, monkeypatch):
    # One device, as users have.
    monkeypatch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1"))
    case = golden / "hf_qwen3"
    config = json.loads((case / "config.json").read_text())
    given = {"task": "train", "directory": str(case), "config": config, "tokens": 40, "tiles": 3, "optim": OPTIM}
    worker = Worker(sys.executable, "benchmarks.ours", given)
    losses = [worker.ask("step")["loss"] for _ in range(3)]
    worker.close()
    assert np.all(np.diff(losses) < 0)


def test_conversions_beside_a_copy(tmp_path):
    result = convert.compare(sizes.get("tiny"), str(tmp_path), rounds=1)
    assert result["equal"] and result["bytes"] > 1_000_000
    for to in ("orbax", "hf", "github"):
        assert result[to]["ratio"] == pytest.approx(result[to]["theirs_s"] / result[to]["ours_s"], abs=1e-3)
        assert result[to]["peak_gb"] > 0.1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("micro_batches", [pytest.param(1, marks=pytest.mark.soak), 2])
def test_steps_of_the_stages_side_by_side(micro_batches, monkeypatch):
    monkeypatch.setattr(stages, "build", build)
    model = dataclasses.replace(sizes.get("tiny"), image_token_id=7)
    found = stages.compare(model, texts=4, tokens=40, rounds=1, micro_batches=micro_batches)
    assert found["mpo_ratio"] == pytest.approx(found["mpo_s"] / found["sft_s"], rel=0.1) and found["gspo_ratio"] > 0
