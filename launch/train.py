"""Trains any stage; started again with the same flags it resumes from its workdir.

  python -m launch.train --config=sft:8b --config.data.meta=META.json --config.run.init_from=DIR
      --config.run.workdir=DIR

Every field of the config can be set: --config.run.steps=100, --config.optim.learning_rate=1e-5. Without a size
(--config=sft) the model is that of run.init_from. The last line of stdout is a JSON summary.
"""

import json
import logging

import jax
from absl import flags

from internvl_jax import training
from launch import config, main

_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "join the processes of a pod (jax.distributed.initialize)")
flags.mark_flag_as_required("config")


def _main(argv: list[str]) -> None:
    settings = config.read()
    logging.getLogger("internvl_jax").setLevel(logging.INFO)
    if _DISTRIBUTED.value:
        jax.distributed.initialize()
    summary = training.train(settings)
    if jax.process_index() == 0:
        print(json.dumps(summary))


if __name__ == "__main__":
    main.run(_main, config.take, config.explain)
