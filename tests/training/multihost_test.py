"""Two processes with four devices each do what one process does; what they save, one process restores. They refuse
different settings, and stopped by a signal to one they go on with the same bits.
"""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

import internvl_jax as ivl
from checkpoint_convert import convert
from internvl_jax.errors import InputError
from internvl_jax.inference.load import save_model
from internvl_jax.sharding import flatten
from internvl_jax.training import train
from internvl_jax.training.run import hooks
from internvl_jax.training.run.goodput import read_record
from internvl_jax.training.run.setup import prepare
from tests.programs import build
from tests.training import lives, toy

ROOT = pathlib.Path(__file__).parents[2]

PROCESS = """
import os, pathlib, signal, subprocess, sys, time
import jax
import numpy as np
from jax.experimental import multihost_utils
import internvl_jax as ivl
from internvl_jax.errors import InputError, Stopped
from internvl_jax.pod import Gauges, Place, Pod
from internvl_jax.sharding import mesh as meshes
from internvl_jax.sharding import flatten, make_mesh
from internvl_jax.training import train
from tests import programs
from tests.training import toy
port, process, data, folder = int(sys.argv[1]), int(sys.argv[2]), *map(pathlib.Path, sys.argv[3:])
pod = Pod(Place("127.0.0.1", port, 2, process), start_limit=60).__enter__()
assert (jax.local_device_count(), jax.device_count()) == (4, 8)
if process == 0:
    command = ["-m", "launch.convert", f"--src={folder / 'released'}", f"--dst={folder / 'ours'}"]
    subprocess.run([sys.executable, *command], check=True)
multihost_utils.sync_global_devices("converted")
model, _ = ivl.load(folder / "ours", "float32", make_mesh({"data": 4, "tensor": 2}), quantise="int8")
np.save(folder / f"scale{process}", flatten(model)["lm.layers.attn.o.weight.int8_scale"].addressable_data(0))
gauges = Gauges()
(folder / f"told{process}").write_text(str([gauges.tell([turn, process]) for turn in range(3)]))
settings = {"mesh": "data=2,fsdp=2,tensor=2", "rules": "fsdp_tp", "init_from": str(folder / "ours")}
whole = toy.config(data, folder / "run", steps=6, **settings)
try:
    train(toy.with_run(whole, rows=8 + 8 * process))
except InputError as error:
    (folder / f"refused{process}").write_text(str(error))
    assert not (folder / "run").exists()

def stop(step):
    if (step, process) == (1, 1):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.5)
    return pod.stop(step)

plain = meshes._grid

def laid(order):
    # As a torus may lay a mesh: `order` has the dimensions (process, two of its devices) as data, fsdp, tensor.
    meshes._grid = lambda shape, devices: np.array(devices).reshape(2, 2, 2).transpose(order).reshape(shape)

with programs.shared():
    laid((2, 1, 0))  # a row's halves lie on two processes
    train(whole)
    parts = toy.with_run(whole, workdir=str(folder / "parts"), save_every=99)
    try:
        train(parts, stop)
    except Stopped as error:
        (folder / f"stopped{process}").write_text(str(error))
    train(parts)
    train(toy.mpo_config(data, folder / "mpo", steps=2, **settings))
    laid((1, 0, 2))  # a process has every other row
    train(toy.gspo_config(data, folder / "gspo", steps=3, **settings))
    meshes._grid = plain
    for name in ("a/b", "pairs"):
        try:
            toy.make_some_pairs(data, folder / "ours", folder / "pairs", name)
        except InputError as error:
            with open(folder / f"said{process}", "a") as file:
                print(error, file=file)
pod.__exit__(None, None, None)
"""


def test_two_processes_are_one(start, tmp_path):
    data = start
    config, processor = prepare(toy.config(data, tmp_path / "made", steps=1))
    save_model(tmp_path / "made", build(config).random_params(), config.model, processor)
    convert(tmp_path / "made", tmp_path / "released", "github")

    port = lives.free_port()
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    env["XLA_FLAGS"] = env["XLA_FLAGS"].replace("device_count=8", "device_count=4")
    command = [sys.executable, "-c", PROCESS, str(port)]
    both = [subprocess.Popen([*command, str(i), str(data), str(tmp_path)], cwd=ROOT, env=env) for i in range(2)]
    try:
        assert [process.wait(900) for process in both] == [0, 0]
    finally:
        for process in both:
            process.kill()

    # Weights are rounded by every process for its own devices.
    scale = flatten(ivl.load(tmp_path / "ours", "float32", quantise="int8")[0])["lm.layers.attn.o.weight.int8_scale"]
    for i in range(2):
        np.testing.assert_array_equal(np.load(tmp_path / f"scale{i}.npy"), scale)
    refused = [(tmp_path / f"refused{i}").read_text() for i in range(2)]
    assert refused[0] == refused[1] and "config.run.rows: 16 on process 1, 8 on process 0" in refused[0]
    # Process 0 hears of every process what it told a round before.
    assert (tmp_path / "told0").read_text() == "[[], [[0, 0], [0, 1]], [[1, 0], [1, 1]]]"
    assert (tmp_path / "told1").read_text() == "[[], [], []]"
    # One process writes where the time went.
    assert {line["kind"] for line in read_record(tmp_path / "parts")} >= {"start", "compiling", "step", "checkpoint"}
    assert [line["kind"] for line in read_record(tmp_path / "parts")].count("start") == 2
    stopped = [(tmp_path / f"stopped{i}").read_text() for i in range(2)]
    assert stopped[0] == stopped[1] and "goes on from step " in stopped[0]
    losses = [[line["loss"] for line in hooks.read_metrics(tmp_path / name)] for name in ("run", "parts")]
    assert losses[0] == losses[1] and len(losses[0]) == 6
    ours, theirs = (flatten(ivl.load(tmp_path / name, "float32")[0]) for name in ("run", "parts"))
    for path, array in ours.items():
        assert np.array_equal(array, theirs[path]), path

    alone = toy.config(data, tmp_path / "alone", steps=6, mesh="fsdp=8", init_from=str(tmp_path / "ours"))
    train(alone)
    losses = [[line["loss"] for line in hooks.read_metrics(tmp_path / name)] for name in ("run", "alone")]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    ours, theirs = (flatten(ivl.load(tmp_path / name, "float32")[0]) for name in ("run", "alone"))
    for path, array in ours.items():
        np.testing.assert_allclose(array, theirs[path], atol=1e-5, err_msg=path)

    # So do pairs with their reference, and the policy's own responses: sampled, graded once, and scored by both.
    for name, make, steps in (("mpo", toy.mpo_config, 2), ("gspo", toy.gspo_config, 3)):
        train(make(data, tmp_path / f"{name}_alone", steps=steps, mesh="fsdp=8", init_from=str(tmp_path / "ours")))
        lines = [hooks.read_metrics(tmp_path / folder) for folder in (name, f"{name}_alone")]
        for metric in {"mpo": ("loss", "delta", "chosen_logp"), "gspo": ("reward", "entropy", "grad_norm")}[name]:
            found = [[line[metric] for line in each] for each in lines]
            np.testing.assert_allclose(*found, rtol=1e-4, atol=1e-6, err_msg=f"{name} {metric}")

    # And so do responses that pairs are made of, which process 0 asks for and writes.
    said = [(tmp_path / f"said{i}").read_text().splitlines() for i in range(2)]
    assert said[0] == said[1] and "the data set 'a/b' can't name a file" in said[0][0]
    nothing = "no pair came out of 16 responses"  # which are cut off, as the model is untrained
    assert len(said[0]) == 2 and nothing in said[0][1]
    with pytest.raises(InputError, match=nothing):
        toy.make_some_pairs(data, tmp_path / "ours", tmp_path / "pairs_alone", "pairs")
    for name in ("responses.jsonl", "settings.json"):
        ours, theirs = ((tmp_path / f"{folder}.partial" / name).read_text() for folder in ("pairs", "pairs_alone"))
        assert ours == theirs and len(ours.splitlines()) >= 4

    # One process restores what two have saved, optimizer and data position included, and finds nothing left to do.
    assert train(toy.with_run(alone, workdir=str(tmp_path / "run")))["step"] == 6
