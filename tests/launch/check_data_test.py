"""launch.check_data from the command line."""

import json

from internvl_jax import data
from tests import forks


def launch(folder, *arguments):
    return forks.python("-m", "launch.check_data", f"--meta={folder}/meta.json", f"--tokenizer={folder}", *arguments)


def test_check_data(tmp_path):
    data.train_bpe(["some words"], 281).save(tmp_path)
    turns = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]
    (tmp_path / "a.jsonl").write_text(json.dumps({"conversations": turns}) + "\n")
    (tmp_path / "meta.json").write_text(json.dumps({"a": {"root": "", "annotation": str(tmp_path / "a.jsonl")}}))
    done = launch(tmp_path)
    assert done.returncode == 0 and ">>>ho<|im_end|><<<" in done.stdout and "0 problems" in done.stdout
    assert json.loads(done.stdout.splitlines()[-1])["samples"] == 1
    done = launch(tmp_path, "--token_budget=7")
    assert done.returncode == 1 and json.loads(done.stdout.splitlines()[-1])["problems"] == 1
    assert "a.jsonl:1 has" in done.stdout
    for flag in ("render", "token_budget", "tile_budget", "max_open", "show_problems"):
        done = launch(tmp_path, f"--{flag}=-1")
        assert done.returncode == 1 and done.stderr.startswith(f"error: flag --{flag}=-1: -1 is not a ")
    done = launch(tmp_path, "--checkpoint=x")
    assert done.stderr == "error: give either --checkpoint or --tokenizer (--help lists the flags)\n"
    (tmp_path / "meta.json").write_text("{")
    done = launch(tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
