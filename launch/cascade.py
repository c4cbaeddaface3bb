"""Runs the cascade on boards of handwritten digits: CPT, SFT, pairs, MPO, GSPO, ViCO, Flash, from random weights.

  python -m launch.cascade --workdir=cascade_out

Needs up to 75 minutes on two cores. Stopped and started again it goes on where it was; give another workdir, or delete
it, to begin anew. The report lies in WORKDIR/report/index.html, the models in WORKDIR/sft, mpo, gspo, router (for
launch.chat --checkpoint). The last line of stdout is JSON: accuracies on the n test questions, image tokens a question
before and with the router, and seconds of all parts.

--best_of=gspo (or sft, mpo) chooses among eight answers of that model instead, by vote and by a critic that is trained
on its own answers; it makes what of the cascade that takes, and the last line has the accuracy of each choice.
"""

import json
import logging
import pathlib
import typing

from absl import flags

from launch import main

_WORKDIR = flags.DEFINE_string("workdir", "cascade_out", "folder for data, checkpoints, answers and the report")
_BEST_OF = flags.DEFINE_enum("best_of", None, ["sft", "mpo", "gspo"], "choose among answers of this model")


def _main(argv: list[str]) -> None:
    from cascade import (  # here: what draws the report takes long to import, and `--help` needs none of it
        best_of,
        recipe,
        run,
    )

    logging.getLogger("internvl_jax").setLevel(logging.INFO)
    if _BEST_OF.value is None:
        print(json.dumps(run.run(_WORKDIR.value)))
    else:
        policy = typing.cast(best_of.Policy, _BEST_OF.value)  # an enum's flag has no other
        run.run(_WORKDIR.value, run.PARTS[: run.PARTS.index(policy) + 1])
        print(json.dumps(best_of.run(pathlib.Path(_WORKDIR.value).absolute(), policy, recipe.RECIPE)))


if __name__ == "__main__":
    main.run(_main)
