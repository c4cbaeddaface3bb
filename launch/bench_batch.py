"""Requests of mixed lengths beside transformers on PyTorch, on this machine: all at once, and one that arrives late.

  python -m launch.bench_batch [--sizes=tiny,1b] [--requests=64] [--device=cuda] [--torch_python=/path/to/python]

Needs the extra `bench` (PyTorch, transformers); the 1B about 14 GB of memory, 5 GB of temporary disk, and half an hour.
The last line of stdout is JSON: for the tiny model and for InternVL3.5-1B, both with random weights in
float32, tokens of answers per second of ours and theirs (`generate` in batches of 8) and the ratio of the two; and how
long a request waits for its first token, and the others for theirs, that arrives while 8 rows are answering.
"""

import json
import sys

from absl import flags

from benchmarks import batch
from launch import main

_REQUESTS = flags.DEFINE_integer("requests", batch.REQUESTS, "how many are asked at once", lower_bound=1)
_SIZES = flags.DEFINE_list("sizes", list(batch.SIZES), f"of {', '.join(batch.SIZES)}")
_DEVICE = flags.DEFINE_enum("device", "cpu", ["cpu", "cuda"], "where both of them run")
_TORCH_PYTHON = flags.DEFINE_string("torch_python", sys.executable, "interpreter that has torch and transformers")


def _main(argv: list[str]) -> None:
    compare = lambda size: batch.compare(size, sys.executable, _TORCH_PYTHON.value, _REQUESTS.value, _DEVICE.value)
    print(json.dumps({size: compare(size) for size in _SIZES.value}))


if __name__ == "__main__":
    main.run(_main)
