"""What a step of MPO and of GSPO costs beside one of SFT on as many tokens (a 111M model, float32; rollouts apart).

  python -m launch.bench_stages [--rounds=5] [--texts=4] [--tokens=256] [--micro_batches=1]

The last line of stdout is JSON: seconds of a step of each, and the ratios to SFT.
"""

import json

from absl import flags

from benchmarks import stages
from internvl_jax.errors import InputError
from launch import main

_ROUNDS = flags.DEFINE_integer("rounds", 5, "steps of each stage; the median counts", lower_bound=1)
_TEXTS = flags.DEFINE_integer("texts", 4, "texts of a step, an even number, with a picture each", lower_bound=2)
_TOKENS = flags.DEFINE_integer("tokens", 256, "tokens of a text, half of them supervised", lower_bound=130)

_MICRO = flags.DEFINE_integer("micro_batches", 1, "rows that a step takes one after the other", lower_bound=1)


def _main(argv: list[str]) -> None:
    texts, micro_batches = _TEXTS.value, _MICRO.value
    if texts % (2 * micro_batches):
        raise InputError(f"--texts={texts} is no even number for each of {micro_batches} micro-batches")
    print(json.dumps(stages.compare(stages.MODEL, texts, _TOKENS.value, _ROUNDS.value, micro_batches)))


if __name__ == "__main__":
    main.run(_main)
