"""Rollouts beside transformers on PyTorch, on this machine: a group of 16 answers to one picture.

  python -m launch.bench_rollout [--rounds=3] [--sizes=tiny,1b] [--device=cuda] [--torch_python=/path/to/python]

Needs the extra `bench` (PyTorch, transformers); the 1B about 14 GB of memory and 5 GB of temporary disk. The last line
of stdout is JSON: for the tiny model and for InternVL3.5-1B, both with random weights in float32, generated tokens per
second of ours and theirs and the ratio of the two.
"""

import json
import sys

from absl import flags

from benchmarks import rollout
from launch import main

_ROUNDS = flags.DEFINE_integer("rounds", 3, "measurements; the median counts", lower_bound=1)
_SIZES = flags.DEFINE_list("sizes", list(rollout.SIZES), f"of {', '.join(rollout.SIZES)}")
_DEVICE = flags.DEFINE_enum("device", "cpu", ["cpu", "cuda"], "where both of them run")
_TORCH_PYTHON = flags.DEFINE_string("torch_python", sys.executable, "interpreter that has torch and transformers")


def _main(argv: list[str]) -> None:
    compare = lambda size: rollout.compare(size, sys.executable, _TORCH_PYTHON.value, _ROUNDS.value, _DEVICE.value)
    print(json.dumps({size: compare(size) for size in _SIZES.value}))


if __name__ == "__main__":
    main.run(_main)
