"""Says what a checkpoint holds, without loading its weights.

    python -m launch.inspect --checkpoint=InternVL3_5-8B-Instruct

takes released checkpoints of both formats, model directories and training workdirs, checks that names and shapes of all
tensors fit config.json, and prints a line per property; the last line of stdout is all of it as JSON.
"""

import json

from absl import flags

from checkpoint_convert import describe
from configs.models.sizes import SIZES
from launch import hub
from launch import main as launcher

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "released checkpoint, model directory or training workdir")
flags.mark_flag_as_required("checkpoint")


def main(argv: list[str]) -> None:
    del argv
    report = describe(hub.directory(_CHECKPOINT.value), SIZES)
    for name, value in report.items():
        missing = "none" if name in ("flash", "adapter") else "unknown"  # of these a config always says whether
        print(f"{name:16} {missing if value is None else value}")
    print(json.dumps(report))


if __name__ == "__main__":
    launcher.run(main)
