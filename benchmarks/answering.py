"""A worker process's side: one JSON line on stdout answers every line on stdin. Its own prints go to stderr.

Imports nothing of internvl_jax: the interpreter with PyTorch may lack JAX.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

# What a worker can do, by name.
Actions = Mapping[str, Callable[[], dict[str, Any]]]


def serve(load: Callable[[], Actions]) -> None:
    """The worker's side: loads, then runs the action that each line names and answers with its result.

    Args:
      load: builds everything and returns the actions; an ImportError of it becomes the answer.
    """
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        actions = load()
    except ImportError as error:
        print(json.dumps({"error": str(error)}), file=channel, flush=True)
        return
    print(json.dumps({}), file=channel, flush=True)
    for line in sys.stdin:
        result = actions[line.strip()]()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # Linux counts in KB
        print(json.dumps({**result, "peak_gb": peak}), file=channel, flush=True)


def seconds(work: Callable[[], Any]) -> dict[str, float]:
    """Runs `work`, which has to wait for its own result."""
    start = time.perf_counter()
    work()
    return {"seconds": time.perf_counter() - start}
