"""launch.plan as a command."""

import json

from tests import forks


def launch(*arguments):
    return forks.python("-m", "launch.plan", *arguments)


def test_a_plan_with_the_layout_of_the_config():
    flags = ["--noauto", "--config.run.mesh=fsdp=4,tensor=2", "--config.run.rules=fsdp_tp", "--config.run.remat=full"]
    done = launch("--config=configs/experiments/sft.py:tiny", "--topology=cpu:8", *flags)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["fits"] and found["layout"]["mesh"] == "fsdp=4,tensor=2" and found["layout"]["remat"] == "full"


def test_bad_input_is_one_line():
    done = launch("--config=configs/experiments/sft.py:tiny", "--topology=v5p:3x3")
    assert done.returncode == 1 and done.stdout == ""
    assert (
        done.stderr
        == "error: topology 'v5p:3x3' is no slice of v5p; there are 2x2x1, 2x2x2, 2x2x4, 2x4x4, 4x4x4, "
        + ("4x4x8, 4x8x8, 8x8x8\n")
    )
    assert "give --config" in launch("--topology=v5p").stderr
    done = launch("--config=configs/experiments/sft.py:tiny", "--topology=cpu:8", "--quantise=int8")
    assert done.stderr == "error: --quantise is of serving, --task=train has none; leave it out\n"
