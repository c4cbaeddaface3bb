"""A group of answers to one picture beside transformers' `generate`, timed from the pixels to the last token."""

import contextlib
import tempfile
from typing import Any

from benchmarks import workload
from benchmarks.workers import Worker, in_turns, ratios
from internvl_jax.errors import InputError

GROUP, NEW = 16, 64
# Config, tokens of the prompt.
SIZES = {"tiny": (workload.TINY, 40), "1b": (workload.INFERENCE, 320)}


def compare(size: str, python: str, torch_python: str, rounds: int, device: str) -> dict[str, Any]:
    """Random weights in float32, one tile, a group of 16 that writes 64 tokens each, drawn at temperature 1.

    Args:
      device: "cpu" or "cuda".

    Returns:
      tokens per second of ours and theirs, and of the same calls: the seconds until the first tokens (tower and
      prompt), and those of one token of the whole group after that.

    Raises:
      InputError: PyTorch is missing, or the greedy tokens differ.
    """
    config, prompt = SIZES[size]
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        Worker(torch_python, "benchmarks.theirs", {"task": "make", "directory": directory, "config": config}).close()
        given: dict[str, Any] = {"task": "rollout", "directory": directory, "config": config}
        given |= {"prompt": prompt, "tiles": 1, "group": GROUP, "new": NEW}
        workers = {
            "ours": Worker(python, "benchmarks.ours", given, device),
            "theirs": Worker(torch_python, "benchmarks.theirs", given, device),
        }
        for worker in workers.values():
            stack.callback(worker.close)
        greedy = [worker.ask("greedy")["tokens"] for worker in workers.values()]
        if greedy[0] != greedy[1]:
            raise InputError("ours and theirs answer with different tokens; run launch.compare to find where")
        first, whole = (ratios(in_turns(workers, action, rounds)) for action in ("first", "rollout"))
    tokens = GROUP * NEW
    step = {key: round((whole[key] - first[key]) / (NEW - 1), 5) for key in ("ours_s", "theirs_s")}
    return {
        "ours": round(tokens / whole["ours_s"], 1),
        "theirs": round(tokens / whole["theirs_s"], 1),
        "ratio": whole["ratio"],
        "first": first,
        "step": step | {"ratio": round(step["theirs_s"] / step["ours_s"], 3)},
    }
