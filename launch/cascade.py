"""Runs the cascade on boards of handwritten digits: CPT, SFT, pairs, MPO, GSPO, ViCO, Flash, from random weights.

  python -m launch.cascade --workdir=cascade_out

Needs up to 75 minutes on two cores. Stopped and started again it goes on where it was; give another workdir, or delete
it, to begin anew. The report lies in WORKDIR/report/index.html, the models in WORKDIR/sft, mpo, gspo, router (for
launch.chat --checkpoint). The last line of stdout is JSON: accuracies on the n test questions, image tokens a question
before and with the router, and seconds of all parts.
"""

import json
import logging

from absl import flags

from launch import main

_WORKDIR = flags.DEFINE_string("workdir", "cascade_out", "folder for data, checkpoints, answers and the report")


def _main(argv: list[str]) -> None:
    from cascade import run  # here: what draws the report takes long to import, and `--help` needs none of it

    logging.getLogger("internvl_jax").setLevel(logging.INFO)
    print(json.dumps(run.run(_WORKDIR.value)))


if __name__ == "__main__":
    main.run(_main)
