"""Installed commands are the launchers."""

import ast
import pathlib
import subprocess
import sys

from launch import commands

ROOT = pathlib.Path(__file__).parent.parent.parent


def test_every_installed_command_is_there():
    tree = ast.parse((ROOT / "setup.py").read_text())
    names = ast.literal_eval(next(node.value for node in tree.body if isinstance(node, ast.Assign)))
    assert len(names) == 10
    for name in names:
        assert vars(commands)[name].args == (name,) and (ROOT / "launch" / f"{name}.py").exists()


def test_a_command_is_its_launcher(tmp_path):
    program = "from launch.commands import inspect; inspect()"
    environment = {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "PATH": ""}
    options = {"capture_output": True, "text": True, "check": False, "cwd": tmp_path, "env": environment}
    done = subprocess.run([sys.executable, "-c", program, "--help"], **options)
    assert done.returncode == 0 and "--checkpoint:" in done.stdout and "Says what a checkpoint holds" in done.stdout
    done = subprocess.run([sys.executable, "-c", program, "--checkpoint=none"], **options)
    assert done.returncode == 1 and done.stderr.startswith("error: none/config.json is not there")
