"""A process per framework, so that the two are measured in turns and their memory apart."""

import json
import os
import statistics
import subprocess
from collections.abc import Mapping
from typing import Any

from internvl_jax.errors import InputError


class Worker:
    """A process running `answering.serve`.

    Args:
      python: interpreter of the process.
      module: to run in it.
      arguments: what the module is called with, by name.
      device: "cpu", or "cuda" for both frameworks on one GPU, in turns: JAX then takes what memory it needs and no
        more, and float32 means float32 to it as it does to PyTorch.

    Raises:
      InputError: the worker cannot start, in its own words.
    """

    def __init__(self, python: str, module: str, arguments: Mapping[str, Any], device: str = "cpu"):
        self._name = module
        environment = {"JAX_PLATFORMS": device}
        if device == "cuda":
            environment |= {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "JAX_DEFAULT_MATMUL_PRECISION": "highest"}
        else:
            environment["CUDA_VISIBLE_DEVICES"] = ""
        self._process = subprocess.Popen(
            [python, "-m", module, json.dumps(arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | environment,
        )
        if problem := self._answer().get("error"):
            self.close()
            raise InputError(problem)

    def ask(self, action: str) -> dict[str, Any]:
        self._process.stdin.write(f"{action}\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if not line:
            self.close()
            code = self._process.returncode
            raise InputError(f"{self._name} stopped with exit code {code}; its own words stand above")
        return json.loads(line)


def in_turns(workers: Mapping[str, Worker], action: str, rounds: int) -> dict[str, list[dict[str, Any]]]:
    """Every worker's answers, the workers one after the other in each round; a first round warms up and is dropped."""
    answers: dict[str, list[dict[str, Any]]] = {name: [] for name in workers}
    for turn in range(rounds + 1):
        for name, worker in workers.items():
            answer = worker.ask(action)
            if turn:
                answers[name].append(answer)
    return answers


def ratios(answers: Mapping[str, list[dict[str, Any]]]) -> dict[str, float]:
    """Median seconds of both, and theirs / ours."""
    ours, theirs = (statistics.median(answer["seconds"] for answer in answers[name]) for name in ("ours", "theirs"))
    return {"ours_s": round(ours, 4), "theirs_s": round(theirs, 4), "ratio": round(theirs / ours, 3)}
