"""Threads of XLA for devices that a CPU is taken for."""

import os
import re


def provide() -> None:
    """Has XLA make four for each, where `XLA_FLAGS` asks for several; to be called before JAX looks for devices.

    XLA's CPU devices wait for each other in threads of one pool, which has as many as there are cores or devices. Where
    collectives don't depend on each other a device may wait in several, until no thread is left to end any of them: the
    process aborts after 40 s ("termination timeout ... rendezvous", jaxlib 0.10.2).
    """
    if found := re.search(r"host_platform_device_count=(\d+)", os.environ.get("XLA_FLAGS", "")):
        os.environ.setdefault("NPROC", str(max(os.cpu_count() or 1, 4 * int(found[1]))))
