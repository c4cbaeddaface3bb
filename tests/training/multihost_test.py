"""Two processes with four devices each do what one process does; what they save, one process restores."""

import os
import pathlib
import socket
import subprocess
import sys

import numpy as np

import internvl_jax as ivl
from checkpoint_convert import convert
from internvl_jax.inference.load import save_model
from internvl_jax.sharding import flatten
from internvl_jax.training import train
from internvl_jax.training.run import hooks
from internvl_jax.training.run.setup import prepare
from tests.programs import build
from tests.training import toy

ROOT = pathlib.Path(__file__).parents[2]

PROCESS = """
import pathlib, subprocess, sys
import jax
from jax.experimental import multihost_utils
from internvl_jax.training import train
from tests.training import toy
port, process, data, folder = int(sys.argv[1]), int(sys.argv[2]), *map(pathlib.Path, sys.argv[3:])
jax.distributed.initialize(f"127.0.0.1:{port}", 2, process, initialization_timeout=60)
assert (jax.local_device_count(), jax.device_count()) == (4, 8)
if process == 0:
    command = ["-m", "launch.convert", f"--src={folder / 'released'}", f"--dst={folder / 'ours'}"]
    subprocess.run([sys.executable, *command], check=True)
multihost_utils.sync_global_devices("converted")
settings = {"mesh": "data=2,fsdp=2,tensor=2", "rules": "fsdp_tp", "init_from": str(folder / "ours")}
train(toy.config(data, folder / "run", steps=3, **settings))
train(toy.mpo_config(data, folder / "mpo", steps=2, **settings))
train(toy.gspo_config(data, folder / "gspo", steps=3, **settings))
"""


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


def test_two_processes_are_one(start, tmp_path):
    data = start
    config, processor = prepare(toy.config(data, tmp_path / "made", steps=1))
    save_model(tmp_path / "made", build(config).random_params(), config.model, processor)
    convert(tmp_path / "made", tmp_path / "released", "github")

    port = free_port()
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    env["XLA_FLAGS"] = env["XLA_FLAGS"].replace("device_count=8", "device_count=4")
    command = [sys.executable, "-c", PROCESS, str(port)]
    both = [subprocess.Popen([*command, str(i), str(data), str(tmp_path)], cwd=ROOT, env=env) for i in range(2)]
    try:
        assert [process.wait(300) for process in both] == [0, 0]
    finally:
        for process in both:
            process.kill()

    alone = toy.config(data, tmp_path / "alone", steps=3, mesh="fsdp=8", init_from=str(tmp_path / "ours"))
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

    # One process restores what two have saved, optimizer and data position included, and finds nothing left to do.
    assert train(toy.with_run(alone, workdir=str(tmp_path / "run")))["step"] == 3
