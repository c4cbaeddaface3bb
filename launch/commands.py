"""The installed commands: `internvl-train` is `python -m launch.train`, and so on."""

import functools
import os
import runpy
import sys

from launch import importing


def _run(name: str) -> None:
    sys.path.append(os.getcwd())  # rewards and graders of the user's own are found as under `python -m`
    importing()
    runpy.run_module(f"launch.{name}", run_name="__main__", alter_sys=True)


chat = functools.partial(_run, "chat")
check_data = functools.partial(_run, "check_data")
compare = functools.partial(_run, "compare")
convert = functools.partial(_run, "convert")
evaluate = functools.partial(_run, "evaluate")
inspect = functools.partial(_run, "inspect")
make_pairs = functools.partial(_run, "make_pairs")
plan = functools.partial(_run, "plan")
serve = functools.partial(_run, "serve")
train = functools.partial(_run, "train")
