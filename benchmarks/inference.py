"""Vision, prefill and decode of the full-size 1B beside transformers, and the peak memory of both processes."""

import contextlib
import tempfile
from typing import Any

from benchmarks import workload
from benchmarks.workers import Worker, in_turns, ratios
from internvl_jax.errors import InputError

PARTS = ("vision", "prefill", "decode")


def compare(python: str, torch_python: str, rounds: int, bfloat16: bool) -> dict[str, Any]:
    """Random weights, 5 tiles of 448, 1,324 prompt tokens, 32 new tokens; decode is seconds a token.

    Raises:
      InputError: PyTorch is missing, or the greedy tokens differ in float32.
    """
    with tempfile.TemporaryDirectory() as directory:
        config = workload.INFERENCE
        Worker(torch_python, "benchmarks.theirs", {"task": "make", "directory": directory, "config": config}).close()
        given = {"directory": directory, "config": config, "prompt": 1324, "tiles": 5, "new": 32}
        result = _measure(python, torch_python, {**given, "dtype": "float32"}, rounds)
        if not result["greedy_tokens_equal"]:
            raise InputError(
                "ours and theirs answer with different tokens in float32; run launch.compare to find where"
            )
        if bfloat16:
            result["bfloat16"] = _measure(python, torch_python, {**given, "dtype": "bfloat16"}, max(1, rounds // 2))
        return result


def _measure(python: str, torch_python: str, given: dict[str, Any], rounds: int) -> dict[str, Any]:
    given = {"task": "inference", **given}
    with contextlib.ExitStack() as stack:
        workers = {
            "ours": Worker(python, "benchmarks.ours", given),
            "theirs": Worker(torch_python, "benchmarks.theirs", given),
        }
        for worker in workers.values():
            stack.callback(worker.close)
        answers = {part: in_turns(workers, part, rounds) for part in PARTS}
    ours, theirs = (answers["decode"][name][-1] for name in ("ours", "theirs"))
    return {
        **{part: ratios(answers[part]) for part in PARTS},
        "greedy_tokens_equal": ours["tokens"] == theirs["tokens"],
        "peak_memory": {
            "ours_gb": round(ours["peak_gb"], 2),
            "theirs_gb": round(theirs["peak_gb"], 2),
            "ours_over_theirs": round(ours["peak_gb"] / theirs["peak_gb"], 3),
        },
    }
