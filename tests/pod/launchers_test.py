"""Processes on this machine that have the variables of each launcher find each other: for `make soak` (`place_test` has
what each of them finds).
"""

import os
import pathlib
import subprocess
import sys

import pytest

from tests.training.lives import free_port

ROOT = pathlib.Path(__file__).parents[2]
# `--distributed=auto` does the same, with flags.
FOUND = """
import sys
from jax._src import clusters
clusters.cloud_tpu_cluster.running_in_cloud_tpu_vm = sys.argv[1] == "gke"
from internvl_jax.pod import Pod, place
with Pod(place.found(None, None, None, 60)):
    import jax
    print(jax.process_index(), jax.process_count())
"""
GIVEN = """
import sys
from absl import flags
from launch import pod
flags.FLAGS(["launcher"])
with pod.joined():
    import jax
    print(jax.process_index(), jax.process_count())
"""


def variables(kind, rank, port):
    """What the launcher sets for process `rank` of two on one machine."""
    return {
        "slurm": {
            "SLURM_JOB_ID": str(port - 61440),
            "SLURM_STEP_NODELIST": "127.0.0.1",
            "SLURM_NTASKS": "2",
            "SLURM_PROCID": str(rank),
            "SLURM_LOCALID": "0",  # of a machine of its own: the one CPU device
        },
        "open_mpi": {
            "OMPI_MCA_orte_hnp_uri": f"{(port - 61440) * 4096}.0;tcp://127.0.0.1:34911",
            "OMPI_COMM_WORLD_SIZE": "2",
            "OMPI_COMM_WORLD_RANK": str(rank),
            "OMPI_COMM_WORLD_LOCAL_RANK": "0",
        },
        "gke": {
            "TPU_WORKER_ID": str(rank),
            "TPU_WORKER_HOSTNAMES": "127.0.0.1,127.0.0.1",
            "TPU_SKIP_MDS_QUERY": "1",
            "MEGASCALE_COORDINATOR_ADDRESS": "127.0.0.1",
            "MEGASCALE_NUM_SLICES": "1",
            "MEGASCALE_SLICE_ID": "0",
            "JAX_COORDINATOR_PORT": str(port),
        },
        "skypilot": {
            "SKYPILOT_NODE_RANK": str(rank),
            "SKYPILOT_NUM_NODES": "2",
            "SKYPILOT_NODE_IPS": "127.0.0.1\n127.0.0.1",
        },
        "jobset_and_ray": {
            "INTERNVL_JAX_COORDINATOR": f"127.0.0.1:{port}",
            "INTERNVL_JAX_PROCESSES": "2",
            "INTERNVL_JAX_PROCESS": str(rank),
        },
    }[kind]


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["slurm", "open_mpi", "gke", "skypilot", "jobset_and_ray"])
def test_two_processes_find_each_other(kind):
    port = free_port()
    if kind in ("slurm", "open_mpi"):  # they count ports from the number of the job
        port = 61440 + port % 4096
    plain = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    plain |= {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", GIVEN if kind == "jobset_and_ray" else FOUND, kind],
            env=plain | variables(kind, rank, port),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for rank, process in enumerate(started):
        said, errors = process.communicate(timeout=120)
        assert (process.returncode, said.split()) == (0, [str(rank), "2"]), errors
