"""Training on a cluster of Ray: an actor a host, each of which starts the same command and tells how it ended.

  ray job submit --working-dir=. -- python docs/pods/ray_job.py --hosts=4 -- --config=sft:8b
      --config.data.meta=/data/meta.json --config.run.init_from=/data/model --config.run.workdir=/runs/8b

Signals that Ray sends belong to its actors. So the run is a process of its own in each, which an actor ends with
SIGTERM when the job is stopped: all save, exit code 75.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys

import ray

PORT = 12345


@ray.remote
class Host:
    """A host's process of the run."""

    def __init__(self) -> None:
        self._process: subprocess.Popen | None = None

    def address(self) -> str:
        """What the other hosts call this one."""
        return ray.util.get_node_ip_address()

    def run(self, coordinator: str, processes: int, process: int, arguments: list[str]) -> int:
        """The exit code of the run."""
        place = {"COORDINATOR": coordinator, "PROCESSES": str(processes), "PROCESS": str(process)}
        environment = os.environ | {f"INTERNVL_JAX_{name}": value for name, value in place.items()}
        self._process = subprocess.Popen([sys.executable, "-m", "launch.train", *arguments], env=environment)
        print(f"process {process} of {processes} on {socket.gethostname()}: {self._process.pid}")
        return self._process.wait()

    def stop(self) -> None:
        """Asks for an end: the run is saved."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)


def main() -> int:
    """Starts all hosts, waits for them, and gives the code of the first."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--hosts", type=int, required=True)
    parser.add_argument("--gpus", type=int, default=8, help="of a host")
    parser.add_argument("arguments", nargs="*", help="of launch.train, behind --")
    given = parser.parse_args()
    ray.init()
    group = ray.util.placement_group([{"GPU": given.gpus}] * given.hosts, strategy="STRICT_SPREAD")
    ray.get(group.ready())
    # Two calls at a time: `stop` has to come through while `run` waits.
    options = {"num_gpus": given.gpus, "max_concurrency": 2}
    where = [
        ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=number)
        for number in range(given.hosts)
    ]
    hosts = [Host.options(scheduling_strategy=each, **options).remote() for each in where]
    coordinator = f"{ray.get(hosts[0].address.remote())}:{PORT}"
    signal.signal(signal.SIGTERM, lambda number, frame: [host.stop.remote() for host in hosts])
    ends = [host.run.remote(coordinator, len(hosts), rank, given.arguments) for rank, host in enumerate(hosts)]
    return ray.get(ends)[0]


if __name__ == "__main__":
    sys.exit(main())
