"""What the files of docs/pods ask of clouds and clusters, which are not there: the commands that they would run, with
stand-ins that write them down, and what restarts.
"""

import os
import pathlib
import re
import subprocess

import pytest
import yaml

from internvl_jax.pod.pod import LOST, STOPPED
from internvl_jax.sharding import parse_mesh

PODS = pathlib.Path(__file__).parents[2] / "docs" / "pods"
ERROR = 1


def commands(tmp_path, script, tool, **variables):
    """How often and with which arguments a script calls a tool; in any order, one list of arguments a call."""
    stand_in, calls = tmp_path / tool, tmp_path / "calls"
    calls.mkdir()
    stand_in.write_text(f'#!/bin/bash\nprintf "%s\\0" "$@" > {calls}/$$\n')
    stand_in.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", **variables}
    subprocess.run(["bash", PODS / script], env=environment, check=True, timeout=60)
    return sorted(path.read_text().split("\0")[:-1] for path in calls.iterdir())


def meshes(arguments):
    """The meshes of the runs that a call starts."""
    return [parse_mesh(text) for text in re.findall(r"--config\.run\.mesh=(\S+)", " ".join(arguments))]


@pytest.mark.parametrize(("slices", "nodes"), [("1", ["pod"]), ("3", ["pod-0", "pod-1", "pod-2"])])
def test_a_run_is_started_on_every_tpu_vm_of_every_slice(tmp_path, slices, nodes):
    calls = commands(tmp_path, "tpu_vm.sh", "gcloud", NAME="pod", ZONE="z", SLICES=slices)
    assert [call[4] for call in calls] == nodes
    for call in calls:
        assert {"--worker=all", "--zone=z"} <= set(call)
        # An axis of parameters never crosses the network between slices.
        assert meshes(call) == [{"fsdp": -1} if slices == "1" else {"data": 3, "fsdp": -1}]


def test_a_slice_that_can_not_be_reached_is_an_error(tmp_path):
    (tmp_path / "gcloud").write_text('#!/bin/bash\ntest "$5" = pod-1\n')
    (tmp_path / "gcloud").chmod(0o755)
    given = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "NAME": "pod", "ZONE": "z", "SLICES": "2"}
    assert subprocess.run(["bash", PODS / "tpu_vm.sh"], env=given, check=False, timeout=60).returncode == 1


@pytest.mark.parametrize("slices", ["1", "2"])
def test_xpk_restarts_what_wants_the_same_command_again(tmp_path, slices):
    """By itself it does so for 42 and from 127 on, and for no other code."""
    (call,) = commands(tmp_path, "xpk.sh", "xpk", CLUSTER="c", IMAGE="i", SLICES=slices)
    (codes,) = (each.removeprefix("--restart-on-exit-codes=") for each in call if "exit-codes" in each)
    assert sorted(map(int, codes.split(","))) == [STOPPED, LOST]
    assert meshes(call) == [{"fsdp": -1} if slices == "1" else {"data": 2, "fsdp": -1}]


@pytest.mark.parametrize("file", ["jobset_tpu.yaml", "jobset_gpu.yaml"])
def test_a_job_set_restarts_what_wants_the_same_command_again(file):
    """A pod that ends with a code of the job's policy fails the job for that reason, and the set has it at that."""
    spec = yaml.safe_load((PODS / file).read_text())["spec"]
    (job,) = (each["template"]["spec"] for each in spec["replicatedJobs"])
    pod = job["template"]["spec"]
    (container,), (rule,) = pod["containers"], job["podFailurePolicy"]["rules"]
    codes = rule["onExitCodes"]
    assert (rule["action"], codes["operator"], codes["containerName"]) == ("FailJob", "In", container["name"])
    assert ERROR in codes["values"] and not {0, STOPPED, LOST} & set(codes["values"])
    assert max(codes["values"]) < 128  # what a signal ended, as a machine that is taken away, wants it too
    assert pod["restartPolicy"] == "Never" and job["backoffLimit"] == 0  # as the policy needs it
    (ends,) = spec["failurePolicy"]["rules"]
    assert ends == {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    assert spec["failurePolicy"]["maxRestarts"] > 0


def test_slurm_and_skypilot_restart_the_same_codes():
    asked = re.findall(r'"\$code" = (\d+)', (PODS / "slurm.sbatch").read_text())
    sky = yaml.safe_load((PODS / "skypilot.yaml").read_text())["resources"]["job_recovery"]
    assert sorted(map(int, asked)) == sky["recover_on_exit_codes"] == [STOPPED, LOST]
    assert not sky.get("max_restarts_on_errors")
