"""Trains any stage; started again with the same flags it resumes from its workdir.

  python -m launch.train --config=configs/experiments/sft.py:8b --config.data.meta=META.json
      --config.data.tokenizer=DIR --config.run.workdir=DIR

Every field of the config can be set: --config.run.steps=100, --config.optim.learning_rate=1e-5. The last line of stdout
is a JSON summary.
"""

import json
import logging

import jax
from absl import flags
from ml_collections import config_flags

from internvl_jax import training
from launch import main

_CONFIG = config_flags.DEFINE_config_file("config", None, "configs/experiments/STAGE.py:SIZE", lock_config=True)
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "join the processes of a pod (jax.distributed.initialize)")
flags.mark_flag_as_required("config")


def _main(argv: list[str]) -> None:
    logging.getLogger("internvl_jax").setLevel(logging.INFO)
    if _DISTRIBUTED.value:
        jax.distributed.initialize()
    summary = training.train(_CONFIG.value)
    if jax.process_index() == 0:
        print(json.dumps(summary))


if __name__ == "__main__":
    main.run(_main)
