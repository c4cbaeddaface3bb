"""Compiles a config's real programs for accelerators that are not attached, and says what they need.

  python -m launch.plan --config=sft:8b --topology=v5p:4x4x4
  python -m launch.plan --config=gspo:8b --task=rollout --topology=v5p:4x4x4
  python -m launch.plan --config=sft:38b-flash --task=dvd --topology=v6e:4x4

The last line of stdout is JSON: whether it fits, bytes a device by kind, operations, bytes sent, an estimated step time
and MFU (of rows of one sample, or of samples of --median_length), the smallest slice. v5p:4x4x4*2 is two slices. TPU
slices need libtpu (pip install 'internvl_jax[tpu]'), no TPU; GPUs and CPUs (h100:8, cpu:8) are stood in for by CPU
devices: memory only. --table=docs/PLANS.md makes the table of all sizes (two hours), --task=dvd docs/DVD_PLANS.md.
"""

import dataclasses
import json
import os
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # nothing runs on an accelerator, one that is there stays free

from absl import flags

from configs.choose import choose
from internvl_jax import planning
from internvl_jax.errors import InputError
from internvl_jax.planning import splits_table, table
from launch import assumptions, caching, config, main, quantising

_TOPOLOGY = flags.DEFINE_string("topology", None, "v5p:4x4x4, v6e:8x8, h100:8, cpu:8; or v5p, for the smallest slice")
_TASK = flags.DEFINE_enum("task", "train", [*planning.TASKS, "dvd"], "the program, or all of a server, rollouts or dvd")
_SIZE: dict[str, Any] = {
    "rows": flags.DEFINE_integer("rows", None, "of serving: conversations at a time; 8, and 32 for dvd"),
    "prompt": flags.DEFINE_integer("prompt", None, "of prefill: tokens of a prompt; 8,192"),
    "slots": flags.DEFINE_integer("slots", None, "of decoding: tokens of prompt and answer; 32,768, and 4,096 for dvd"),
    "chunk": flags.DEFINE_integer("chunk", None, "of a server: tokens of prompts read while others are answered; 512"),
    "tiles": flags.DEFINE_integer("tiles", None, "of a server: tiles of a picture; 13, and 10 for dvd"),
    "page": flags.DEFINE_integer("page", None, "of serving: tokens of a page; by default rows have slots"),
} | {"quantise": quantising.HOW, "cache": caching.KEPT}
_TEXT = flags.DEFINE_integer("text", 64, "of dvd: tokens of a question beside its picture")
_ANSWER = flags.DEFINE_integer("answer", 32, "of dvd: tokens of an answer")
_SHARE = flags.DEFINE_float("share", 2 / 3, "of dvd: of tiles that a Flash model compresses")
_GBITS = flags.DEFINE_float("gbits", 10.0, "of dvd: 10^9 bits a second of each language server's link")
_AUTO = flags.DEFINE_bool("auto", True, "choose mesh, rules, remat, offload, micro-batches; --noauto: the config's")
_TABLE = flags.DEFINE_string("table", None, "write the table of all sizes to this file")


def _main(argv: list[str]) -> None:
    dvd, settings = _TASK.value == "dvd", config.read()
    if _TABLE.value and dvd:
        both = {name: (choose(f"sft:{name}", {}), choose(f"sft:{name}-flash", {})) for name in splits_table.PODS}
        print(json.dumps(splits_table.write(_TABLE.value, both)))
    elif _TABLE.value:
        configs = {stage: {size: choose(f"{stage}:{size}", {}) for size in table.TRAINING} for stage in table.STAGES}
        print(json.dumps(table.write(_TABLE.value, configs)))
    elif settings is None or not _TOPOLOGY.value:
        raise InputError("give --config=STAGE:SIZE and --topology=v5p:4x4x4, or --table=FILE")
    else:
        given = {name: flag.value for name, flag in _SIZE.items() if flag.value is not None}
        if given and _TASK.value in ("train", "rollout"):
            raise InputError(f"--{next(iter(given))} is of serving, --task={_TASK.value} has none; leave it out")
        size = dataclasses.replace(splits_table.SIZE if dvd else table.SIZE, **given)
        if dvd:
            traffic = planning.Traffic(text=_TEXT.value, answer=_ANSWER.value, share=_SHARE.value, gbits=_GBITS.value)
            print(json.dumps(planning.plan_splits(settings, _TOPOLOGY.value, size, traffic)))
        else:
            how = size, _AUTO.value, assumptions.assumed()
            print(json.dumps(planning.plan(settings, _TASK.value, _TOPOLOGY.value, *how)))


if __name__ == "__main__":
    main.run(_main, config.take, config.explain)
