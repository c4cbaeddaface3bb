"""Which process this is: as given, or as found in the variables of a cluster."""

import pytest
from jax._src import clusters

from internvl_jax.errors import InputError
from internvl_jax.pod.place import Place, found, given

SLURM = {
    "SLURM_JOB_ID": "777",
    "SLURM_STEP_NODELIST": "node[07-08]",
    "SLURM_NTASKS": "16",
    "SLURM_PROCID": "9",
    "SLURM_LOCALID": "1",
}


@pytest.fixture(autouse=True)
def nothing(monkeypatch):
    """None of the clusters that JAX knows."""
    for name in (
        *SLURM,
        "OMPI_MCA_orte_hnp_uri",
        "KUBERNETES_SERVICE_HOST",
        "TPU_WORKER_ID",
        "JAX_COORDINATOR_ADDRESS",
        *SKYPILOT,
        *GKE,
    ):
        monkeypatch.delenv(name, raising=False)


def test_what_is_given():
    assert given("10.0.0.1:1234", 8, 3) == Place("10.0.0.1", 1234, 8, 3)
    assert given("[fe80::1]:1234", 1, 0) == Place("fe80::1", 1234, 1, 0)


@pytest.mark.parametrize(
    ("coordinator", "processes", "process", "sentence"),
    [
        (None, 8, None, "--coordinator and --process missing; a pod needs --coordinator=HOST:PORT"),
        ("10.0.0.1", 8, 3, "the coordinator is '10.0.0.1'; write it as HOST:PORT"),
        ("host:99999", 8, 3, "the coordinator is 'host:99999'"),
        ("host:80", 8, 8, "process 8 of 8 can't be; processes count from 0"),
        ("host:80", 8, -1, "process -1 of 8 can't be"),
    ],
)
def test_what_can_not_be(coordinator, processes, process, sentence):
    with pytest.raises(InputError, match=sentence.replace("(", r"\(")):
        given(coordinator, processes, process)


def test_slurm_is_found(monkeypatch):
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    assert found(None, None, None, 1) == Place("node07", 777 + 61440, 16, 9, (1,))
    assert found("10.0.0.1:5", None, None, 1) == Place("10.0.0.1", 5, 16, 9, (1,))
    monkeypatch.setenv("SLURM_NTASKS", "many")
    with pytest.raises(InputError, match=r"the cluster that JAX found does not say which process this is .*'many'"):
        found(None, None, None, 1)


SKYPILOT = {"SKYPILOT_NODE_RANK": "1", "SKYPILOT_NUM_NODES": "3", "SKYPILOT_NODE_IPS": "10.1.0.4\n10.1.0.5\n10.1.0.6"}
OPEN_MPI = {
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
    "OMPI_COMM_WORLD_SIZE": "8",
    "OMPI_COMM_WORLD_RANK": "5",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
}
# Two slices of two hosts, as JobSet and XPK have them: the second host of the second slice.
GKE = {
    "TPU_WORKER_ID": "1",
    "TPU_WORKER_HOSTNAMES": "localhost,other",
    "MEGASCALE_COORDINATOR_ADDRESS": "localhost",
    "MEGASCALE_NUM_SLICES": "2",
    "MEGASCALE_SLICE_ID": "1",
}


@pytest.mark.parametrize(
    ("variables", "place"),
    [
        (SKYPILOT, Place("10.1.0.4", 12345, 3, 1)),
        (OPEN_MPI, Place("10.96.0.1", 1531576320 // 4096 % 4096 + 61440, 8, 5, (1,))),
        (GKE, Place("localhost", 8482, 4, 3)),
        ({**GKE, "MEGASCALE_NUM_SLICES": "1", "MEGASCALE_SLICE_ID": "0"}, Place("localhost", 8482, 2, 1)),
    ],
    ids=["SkyPilot", "Open MPI", "GKE, two slices", "GKE"],
)
def test_variables_of_launchers(variables, place, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if variables.keys() >= GKE.keys():
        monkeypatch.setattr(clusters.cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
    assert found(None, None, None, 1) == place


def test_variables_of_skypilot_that_can_not_be(monkeypatch):
    for name, value in {**SKYPILOT, "SKYPILOT_NUM_NODES": ""}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=r"SKYPILOT_NODE_IPS are '1', '', .*; give --coordinator"):
        found(None, None, None, 1)


def test_nothing_is_found(monkeypatch):
    with pytest.raises(InputError, match=r"no cluster is found: JAX looked for Open MPI .*, Slurm .*; give --coord"):
        found(None, None, None, 1)
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "10.0.0.1:5")
    assert found(None, 2, 1, 1) == Place("10.0.0.1", 5, 2, 1)
