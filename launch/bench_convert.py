"""Speed and memory of converting a checkpoint of a published size, beside copying the same bytes with sync.

  python -m launch.bench_convert [--size=4b] [--rounds=3] [--directory=/large/disk]

Writes random bfloat16 weights in GitHub format and takes them to orbax, to HF and back to GitHub. Needs about three
times the checkpoint's size on disk. The last line of stdout is JSON: for every target format seconds of ours and of the
copy, ratio = copy / ours, and the peak memory in GB; and whether what came back has the same checksum.
"""

import json

from absl import flags

from benchmarks import convert
from configs.models import sizes
from launch import main

_SIZE = flags.DEFINE_string("size", "4b", "a published size, such as 1b")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "the median counts", lower_bound=1)
_DIRECTORY = flags.DEFINE_string("directory", None, "where to write; the system's temporary directory without it")


def _main(argv: list[str]) -> None:
    print(json.dumps(convert.compare(sizes.get(_SIZE.value), _DIRECTORY.value, _ROUNDS.value)))


if __name__ == "__main__":
    main.run(_main)
