"""A train step of a 111M model, vision and language trained, float32, beside transformers."""

import contextlib
import tempfile
from typing import Any

from benchmarks import workload
from benchmarks.workers import Worker, in_turns, ratios
from internvl_jax.errors import InputError

LOSS_TOLERANCE = 1e-4  # relative, of every step


def compare(python: str, torch_python: str, rounds: int) -> dict[str, Any]:
    """One row of 1,024 tokens with 4 tiles of 224: forward, backward, clipping, AdamW.

    Raises:
      InputError: PyTorch is missing, or the losses differ.
    """
    optim = {
        "learning_rate": 1e-5,
        "weight_decay": 0.0,  # the two exempt different parameters
        "beta1": 0.9,
        "beta2": 0.999,
        "eps": 1e-8,
        "clip_norm": 1.0,
    }
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        config = workload.TRAIN
        Worker(torch_python, "benchmarks.theirs", {"task": "make", "directory": directory, "config": config}).close()
        given = {"task": "train", "directory": directory, "config": config, "tokens": 1024, "tiles": 4, "optim": optim}
        workers = {
            "ours": Worker(python, "benchmarks.ours", given),
            "theirs": Worker(torch_python, "benchmarks.theirs", given),
        }
        for worker in workers.values():
            stack.callback(worker.close)
        answers = in_turns(workers, "step", rounds)
    losses = {name: [answer["loss"] for answer in given] for name, given in answers.items()}
    for ours, theirs in zip(*losses.values(), strict=True):
        if abs(ours - theirs) > LOSS_TOLERANCE * theirs:
            raise InputError(f"the losses differ: {losses['ours']} ours, {losses['theirs']} theirs")
    return {
        "step": ratios(answers),
        "loss": losses,
        "peak_gb": {n: round(a[-1]["peak_gb"], 2) for n, a in answers.items()},
    }
