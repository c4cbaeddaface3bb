"""Many requests of mixed lengths beside transformers' `generate` in batches, and a request that arrives while others
are answered.
"""

import contextlib
import tempfile
from typing import Any

from benchmarks import workload
from benchmarks.workers import Worker
from internvl_jax.errors import InputError

REQUESTS, BATCH = 64, 8
# Config; tokens of prompts and of answers, from and to.
SIZES = {"tiny": (workload.TINY, (30, 140), (8, 128)), "1b": (workload.INFERENCE, (300, 1400), (8, 128))}


def compare(size: str, python: str, torch_python: str, requests: int, device: str) -> dict[str, Any]:
    """Random weights in float32; a tile for each request; greedy answers of given lengths. Theirs are taken in their
    order, `BATCH` at a time, padded on the left; a batch goes on until its longest answer is written.

    Args:
      device: "cpu" or "cuda".

    Returns:
      tokens of answers per second, once everything is compiled; how many answers are equal; the peak memory; and of
      ours while `BATCH` rows are answering: seconds of a step, of the longest one while a request arrives and is
      read in chunks, and from its arrival to its first token.

    Raises:
      InputError: PyTorch is missing.
    """
    config, prompts, answers = SIZES[size]
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        Worker(torch_python, "benchmarks.theirs", {"task": "make", "directory": directory, "config": config}).close()
        given: dict[str, Any] = {"task": "batch", "directory": directory, "config": config, "requests": requests}
        given |= {"prompts": prompts, "answers": answers, "rows": BATCH}
        ours = Worker(python, "benchmarks.ours", given, device)
        stack.callback(ours.close)
        for _ in range(2):  # the second turn finds rows as the first has left them, and compiles what they become
            ours.ask("batch")
        mine = ours.ask("batch")
        arrival = ours.ask("arrival")
        theirs = Worker(torch_python, "benchmarks.theirs", given, device)
        stack.callback(theirs.close)
        theirs.ask("warm")
        other = theirs.ask("batch")
    if [len(row) for row in mine["tokens"]] != [len(row) for row in other["tokens"]]:
        raise InputError("ours and theirs wrote answers of different lengths")
    tokens = sum(map(len, mine["tokens"]))
    equal = sum(a == b for a, b in zip(mine["tokens"], other["tokens"], strict=True))
    speeds = [round(tokens / each["seconds"], 2) for each in (mine, other)]
    return {
        **dict(zip(("ours", "theirs"), speeds, strict=True)),
        "ratio": round(other["seconds"] / mine["seconds"], 3),
        "equal_answers": f"{equal} of {requests}",
        "peak_gb": {"ours": round(mine["peak_gb"], 2), "theirs": round(other["peak_gb"], 2)},
        "arrival": {key: value for key, value in arrival.items() if key != "peak_gb"},
    }
