"""Speed of a float32 train step (111M parameters, vision and language trained) beside transformers on PyTorch.

  python -m launch.bench_train [--rounds=5] [--torch_python=/path/to/python]

Needs the extra `bench` (PyTorch, transformers). Fails if the losses of the two differ. The last line of stdout is JSON:
seconds of a step of ours and theirs, and ratio = theirs / ours.
"""

import json
import sys

from absl import flags

from benchmarks import train
from launch import main

_ROUNDS = flags.DEFINE_integer("rounds", 5, "steps measured; the median counts", lower_bound=1)
_TORCH_PYTHON = flags.DEFINE_string("torch_python", sys.executable, "interpreter that has torch and transformers")


def _main(argv: list[str]) -> None:
    print(json.dumps(train.compare(sys.executable, _TORCH_PYTHON.value, _ROUNDS.value)))


if __name__ == "__main__":
    main.run(_main)
