"""Which process of a pod this one is, and where process 0 waits for the others."""

import dataclasses
import os

from jax._src import clusters  # jax.distributed finds this out too, and keeps it to itself until all have come

from internvl_jax.errors import InputError

_LOOKED_FOR = (
    "Open MPI (OMPI_MCA_orte_hnp_uri), Slurm (SLURM_JOB_ID, inside srun), GKE (TPU_WORKER_ID and "
    "TPU_WORKER_HOSTNAMES), a TPU VM (its metadata server), Kubernetes (KUBERNETES_SERVICE_HOST; pip install jax[k8s]) "
    "and JAX_COORDINATOR_ADDRESS; SkyPilot's variables (SKYPILOT_NODE_RANK) are not there either"
)
_SKYPILOT = {name: f"SKYPILOT_{name}" for name in ("NODE_RANK", "NUM_NODES", "NODE_IPS")}
_PORT = 12345  # of process 0 where whoever starts the processes names hosts alone


@dataclasses.dataclass(frozen=True)
class Place:
    """Attributes:
    host, port: where process 0 listens.
    processes, process: how many there are, and which one this is.
    devices: the local devices that it may use; None is all.
    """

    host: str
    port: int
    processes: int
    process: int
    devices: tuple[int, ...] | None = None


def given(coordinator: str | None, processes: int | None, process: int | None) -> Place:
    """The place that somebody names: HOST:PORT of process 0, how many processes there are, and the number of this one.

    Raises:
      InputError: one of them is missing, or is not possible.
    """
    values = {"coordinator": coordinator, "processes": processes, "process": process}
    if missing := [f"--{name}" for name, value in values.items() if value is None]:
        raise InputError(
            f"{' and '.join(missing)} missing; a pod needs --coordinator=HOST:PORT, --processes, --process"
        )
    return _place(str(coordinator), int(processes or 0), int(process or 0))


def found(coordinator: str | None, processes: int | None, process: int | None, seconds: int) -> Place:
    """The place that JAX finds in the environment, or that SkyPilot left there; what is given goes before that.

    Args:
      seconds: how long to look for the address of process 0 where a cluster tells it late.

    Raises:
      InputError: nothing is found.
    """
    coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    if all(name in os.environ for name in _SKYPILOT.values()):
        coordinator, processes, process = _skypilot(coordinator, processes, process)
    try:
        coordinator, processes, process, devices = clusters.ClusterEnv.auto_detect_unset_distributed_params(
            coordinator, processes, process, None, None, seconds
        )
    except (ImportError, OSError, RuntimeError, LookupError, ValueError) as error:
        raise InputError(
            f"the cluster that JAX found does not say which process this is ({error}); {_BY_HAND}"
        ) from error
    if coordinator is None or processes is None or process is None:
        raise InputError(f"no cluster is found: JAX looked for {_LOOKED_FOR}; {_BY_HAND}")
    place = _place(coordinator, processes, process)
    return place if devices is None else dataclasses.replace(place, devices=tuple(devices))


def _skypilot(coordinator: str | None, processes: int | None, process: int | None) -> tuple[str, int, int]:
    """What is not given, of the host's rank, their number, and their addresses, a line each (of a TPU slice SkyPilot
    names every host too).
    """
    rank, nodes, addresses = (os.environ[name] for name in _SKYPILOT.values())
    if not (rank.isdigit() and nodes.isdigit() and addresses.split()):
        raise InputError(
            f"SkyPilot's {', '.join(_SKYPILOT.values())} are {rank!r}, {nodes!r}, {addresses!r}; {_BY_HAND}"
        )
    found = int(nodes) if processes is None else processes, int(rank) if process is None else process
    return coordinator or f"{addresses.split()[0]}:{_PORT}", *found


_BY_HAND = "give --coordinator=HOST:PORT, --processes=N and --process=0 to N-1 instead"


def _place(coordinator: str, processes: int, process: int) -> Place:
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 1 << 16:
        raise InputError(f"the coordinator is {coordinator!r}; write it as HOST:PORT, with a port from 1 to 65535")
    if not 0 <= process < processes:
        raise InputError(f"process {process} of {processes} can't be; processes count from 0")
    return Place(host.strip("[]"), int(port), processes, process)
