"""Trains the tiny model from scratch on easy-VQA and shows what it has learned.

  python -m launch.demo --workdir=demo_out

Needs about twenty minutes on two cores. Stopped and started again it goes on where it was; give another workdir, or
delete it, to begin anew. The report lies in WORKDIR/report, the model in WORKDIR/sft (for launch.chat --checkpoint).
The last line of stdout is JSON: accuracy over the n test questions, and the seconds of training.

  python -m launch.demo --benchmark_file=EasyVQA.tsv
  python -m launch.evaluate --checkpoint=demo_out/sft --suite=EasyVQA --data=EasyVQA.tsv --max_new_tokens=8 --out=DIR

asks the same questions as those of a benchmark, and comes to the same accuracy.
"""

import json
import logging

from absl import flags

from launch import main

_WORKDIR = flags.DEFINE_string("workdir", "demo_out", "folder for data, checkpoints and the report")
_BENCHMARK = flags.DEFINE_string("benchmark_file", None, "write the test's questions here (TSV), and end")


def _main(argv: list[str]) -> None:
    from demo import benchmark_file, run  # here: what draws the report takes long to import, and `--help` needs none

    if _BENCHMARK.value:
        print(json.dumps({"questions": benchmark_file.write(_BENCHMARK.value)}))
        return
    logging.getLogger("internvl_jax").setLevel(logging.INFO)
    print(json.dumps(run.run(_WORKDIR.value)))


if __name__ == "__main__":
    main.run(_main)
