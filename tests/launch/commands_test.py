"""Installed commands are the launchers."""

import ast
import pathlib
import subprocess
import sys

import launch
from launch import commands

ROOT = pathlib.Path(__file__).parent.parent.parent


def setup_list(name):
    tree = ast.parse((ROOT / "setup.py").read_text())
    values = {node.targets[0].id: node.value for node in tree.body if isinstance(node, ast.Assign)}
    return ast.literal_eval(values[name])


def test_libraries_that_a_server_may_lack_are_those_of_its_extra():
    libraries = {requirement.partition(">=")[0].replace("-", "_") for requirement in setup_list("SERVE")}
    assert {library.replace("pyzmq", "zmq") for library in libraries} == launch.SERVE


def test_every_installed_command_is_there():
    names = setup_list("COMMANDS")
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
