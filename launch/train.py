"""Trains any stage; started again with the same flags it resumes from its workdir.

  python -m launch.train --config=sft:8b --config.data.meta=META.json --config.run.init_from=DIR
      --config.run.workdir=DIR

Every field of the config can be set: --config.run.steps=100, --config.optim.learning_rate=1e-5. Without a size
(--config=sft) the model is that of run.init_from. The last line of stdout is a JSON summary. On several hosts start it
on every one, with --distributed=auto or --coordinator, --processes and --process.

SIGTERM or Ctrl-C, on any host, saves on all and ends; once more ends at once. Exit codes: 0 done, 1 an error, 75
stopped and saved, 76 another process was lost.
"""

import json
import logging
import pathlib

import jax
from absl import flags

from internvl_jax import compilation_cache, training
from launch import config, main, pod

_CACHE = flags.DEFINE_string(
    "compilation_cache",
    None,
    "the folder of compiled programs; if not given $JAX_COMPILATION_CACHE_DIR or WORKDIR/xla_cache; empty: keep none",
)
_PROFILE = flags.DEFINE_string("profile_steps", None, "steps to trace into WORKDIR/profile, first and last, as 10:12")
_STACKS = flags.DEFINE_float(
    "stacks_after", 600.0, "seconds without a step's end after which all stacks are printed; 0: never", lower_bound=0
)
flags.mark_flag_as_required("config")


def _main(argv: list[str]) -> None:
    settings, asked = config.read(), training.Watching.parse(_PROFILE.value, _STACKS.value)
    logging.getLogger("internvl_jax").setLevel(logging.INFO)
    with pod.joined() as processes:
        workdir = settings.run.workdir  # without one the run is refused below, and nothing is to lie here
        default = jax.config.jax_compilation_cache_dir or (workdir and pathlib.Path(workdir) / "xla_cache")
        if folder := default if _CACHE.value is None else _CACHE.value:
            compilation_cache.keep_programs(folder)
        summary = training.train(settings, processes.stop, asked)
        if jax.process_index() == 0:
            print(json.dumps(summary))


if __name__ == "__main__":
    main.run(_main, config.take, config.explain)
