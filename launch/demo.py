"""Trains the tiny model from scratch on easy-VQA and shows what it has learned.

  python -m launch.demo --workdir=demo_out

Needs about twenty minutes on two cores. Stopped and started again it goes on where it was; give another workdir, or
delete it, to begin anew. The report lies in WORKDIR/report, the model in WORKDIR/sft (for launch.chat --checkpoint).
The last line of stdout is JSON: accuracy over the n test questions, and the seconds of training.
"""

import json
import logging

from absl import flags

from launch import main

_WORKDIR = flags.DEFINE_string("workdir", "demo_out", "folder for data, checkpoints and the report")


def _main(argv: list[str]) -> None:
    from demo import run  # here: what draws the report takes long to import, and `--help` needs none of it

    logging.getLogger("internvl_jax").setLevel(logging.INFO)
    print(json.dumps(run.run(_WORKDIR.value)))


if __name__ == "__main__":
    main.run(_main)
