"""Speed and memory of InternVL3.5-1B beside transformers on PyTorch, on this machine's CPU.

  python -m launch.bench_inference [--rounds=5] [--torch_python=/path/to/python]

Needs the extra `bench` (PyTorch, transformers), about 12 GB of memory and 5 GB of temporary disk. The last line of
stdout is JSON: seconds of ours and theirs for vision (5 tiles of 448), prefill (1,324 tokens) and decode (a token), and
ratio = theirs / ours, in float32 and in bfloat16, with the peak memory of both processes.
"""

import json
import sys

from absl import flags

from benchmarks import inference
from launch import main

_ROUNDS = flags.DEFINE_integer("rounds", 5, "measurements of each part; the median counts", lower_bound=1)
_TORCH_PYTHON = flags.DEFINE_string("torch_python", sys.executable, "interpreter that has torch and transformers")
_BFLOAT16 = flags.DEFINE_bool("bfloat16", True, "measure bfloat16 too")


def _main(argv: list[str]) -> None:
    result = inference.compare(sys.executable, _TORCH_PYTHON.value, _ROUNDS.value, _BFLOAT16.value)
    print(json.dumps(result))


if __name__ == "__main__":
    main.run(_main)
