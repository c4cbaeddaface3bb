"""Compiles a config's real programs for accelerators that are not attached, and says what they need.

  python -m launch.plan --config=sft:8b --topology=v5p:4x4x4
  python -m launch.plan --config=sft:8b --task=serve --topology=v6e
  python -m launch.plan --config=gspo:8b --task=rollout --topology=v5p:4x4x4

The last line of stdout is JSON: whether it fits, bytes a device by kind, operations, bytes sent, an estimated step time
and MFU, the smallest slice. --topology=v5p finds the smallest slice of v5p by compiling. TPU slices need libtpu
(pip install 'internvl_jax[tpu]'), no TPU. GPUs and CPUs (h100:8, cpu:8) are stood in for by CPU devices: memory only.
--table=docs/PLANS.md makes the table of all sizes instead (two hours or more).
"""

import json
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # nothing runs on an accelerator, one that is there stays free

from absl import flags

from configs.experiments import gspo, sft
from internvl_jax import planning
from internvl_jax.errors import InputError
from internvl_jax.planning import table
from launch import config, main

_TOPOLOGY = flags.DEFINE_string("topology", None, "v5p:4x4x4, v6e:8x8, h100:8, cpu:8; or v5p, for the smallest slice")
_TASK = flags.DEFINE_enum("task", "train", list(planning.TASKS), "the program, or all of a server or a rollout batch")
_ROWS = flags.DEFINE_integer("rows", 8, "of serving: conversations at a time")
_PROMPT = flags.DEFINE_integer("prompt", 8192, "of prefill: tokens of a prompt")
_SLOTS = flags.DEFINE_integer("slots", 32768, "of decoding: tokens of prompt and answer")
_CHUNK = flags.DEFINE_integer("chunk", 512, "of a server: tokens of prompts read while others are answered")
_TILES = flags.DEFINE_integer("tiles", 13, "of a server: tiles of a picture")
_PAGE = flags.DEFINE_integer("page", None, "of serving: tokens of a page; by default rows have slots")
_AUTO = flags.DEFINE_bool("auto", True, "choose mesh, rules, remat and micro-batches; --noauto takes the config's")
_TABLE = flags.DEFINE_string("table", None, "write the table of all sizes to this file")


def _main(argv: list[str]) -> None:
    if _TABLE.value:
        configs = [{name: stage.get_config(name) for name in table.TRAINING} for stage in (sft, gspo)]
        print(json.dumps(table.write(_TABLE.value, *configs)))
        return
    settings = config.read()
    if settings is None or not _TOPOLOGY.value:
        raise InputError("give --config=STAGE:SIZE and --topology=v5p:4x4x4, or --table=FILE")
    size = planning.Serving(_ROWS.value, _PROMPT.value, _SLOTS.value, _CHUNK.value, _TILES.value, _PAGE.value)
    print(json.dumps(planning.plan(settings, _TASK.value, _TOPOLOGY.value, size, _AUTO.value)))


if __name__ == "__main__":
    main.run(_main, config.take, config.explain)
