"""Accelerators by name, with their vendors' figures, and the slices that they come in."""

import contextlib
import dataclasses
import math
import os
import re
from typing import Any

import jax
from jax.experimental import topologies

from internvl_jax.errors import InputError
from internvl_jax.models import PEAK
from internvl_jax.validation import first_line


@dataclasses.dataclass(frozen=True)
class Chip:
    """An accelerator.

    Attributes:
      platform: jax's name for it: 'tpu', 'gpu' or 'cpu'.
      kind: jax's device_kind; '' for a CPU.
      matrix: how many rows a matrix unit has.
      clock: cycles a second, in the cycles that the TPU compiler counts; 0 where no compiler counts them.
      hbm: bytes of its memory.
      hbm_bandwidth: bytes a second that it reads or writes there.
      link_bandwidth: bytes a second that it sends along one dimension of the torus, both ways together; for GPUs over
        NVLink.
      host_memory: bytes of its share of the memory of its host; 0 where nothing is planned there.
      host_bandwidth: bytes a second that it sends there, or has from there.
      slices: the shapes that it comes in, smallest first.
    """

    platform: str
    kind: str
    matrix: int
    clock: float
    hbm: float
    hbm_bandwidth: float
    link_bandwidth: float
    host_memory: float
    host_bandwidth: float
    slices: tuple[str, ...]

    @property
    def peak(self) -> float:
        """Dense bfloat16 operations a second."""
        return PEAK.get(self.kind, 0.0)


_GIB = 2.0**30
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")
_SQUARES = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_ALONE = "1x1"  # of chips that are let singly; no candidate, and planned where it is asked for
_BOXES = ("1", "2", "4", "8")

# From Google Cloud's pages on v5e, v5p and v6e (a chip's links: 1,600, 4,800 and 3,584 Gbit/s in all, here divided by
# the dimensions of the torus) and NVIDIA's data sheets. The memory of TPUs is what their compiler lets a program take.
# A chip's share of its host's memory is that of machines with all chips of a host; of the way there no page says the
# rate: 16 and 32 GB/s each way are what "How to scale your model" (DeepMind, 2025) has.
# The clock is the one at which the chip's matrix units reach its peak.
CHIPS = {
    "v5e": Chip("tpu", "TPU v5 lite", 128, 1.5e9, 15.75 * _GIB, 0.819e12, 1.0e11, 48e9, 1.6e10, _SQUARES),
    "v5p": Chip("tpu", "TPU v5p", 128, 1.75e9, 95.74 * _GIB, 2.765e12, 2.0e11, 112e9, 1.6e10, _CUBES),
    "v6e": Chip("tpu", "TPU v6 lite", 256, 1.75e9, 31.25 * _GIB, 1.64e12, 2.24e11, 180e9, 3.2e10, _SQUARES),
    "a100": Chip("gpu", "NVIDIA A100-SXM4-80GB", 1, 0.0, 80e9, 2.039e12, 3.0e11, 0.0, 3.2e10, _BOXES),
    "h100": Chip("gpu", "NVIDIA H100 80GB HBM3", 1, 0.0, 80e9, 3.35e12, 4.5e11, 0.0, 6.4e10, _BOXES),
    "h200": Chip("gpu", "NVIDIA H200", 1, 0.0, 141e9, 4.8e12, 4.5e11, 0.0, 6.4e10, _BOXES),
    "cpu": Chip("cpu", "", 1, 0.0, math.inf, 0.0, 0.0, 0.0, 0.0, ()),
}
CHIPS["gpu"] = CHIPS["h100"]


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice: the name of a chip and a shape, written 'v5p:4x4x4', 'h100:8' or 'cpu:8'; or several equal slices of
    TPUs with a network between them, 'v5p:4x4x4*2'.
    """

    name: str
    shape: tuple[int, ...]
    slices: int = 1

    @classmethod
    def parse(cls, text: str) -> "Topology":
        """The slice that is written so.

        Raises:
          InputError: no slice is.
        """
        found = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)(?:\*(\d+))?", text)
        if not found or found.group(1) not in CHIPS:
            raise InputError(
                f"topology is {text!r}; write a chip and its shape or number, as v5p:4x4x4, v6e:8x8, h100:8 or cpu:8 "
                f"(chips: {', '.join(CHIPS)})"
            )
        name, shape = found.group(1), tuple(int(size) for size in found.group(2).split("x"))
        known = CHIPS[name].slices
        known = (_ALONE, *known) if known == _SQUARES else known
        if CHIPS[name].platform == "tpu" and found.group(2) not in known:
            raise InputError(f"topology {text!r} is no slice of {name}; there are {', '.join(known)}")
        if (len(shape) > 1 and CHIPS[name].platform != "tpu") or min(shape) < 1:
            raise InputError(f"topology {text!r}: give a number of devices, as {name}:8")
        slices = int(found.group(3) or 1)
        if slices < 1 or (slices > 1 and CHIPS[name].platform != "tpu"):
            raise InputError(f"topology {text!r}: only TPUs come in several slices; give a number of devices")
        return cls(name, shape, slices)

    @property
    def chip(self) -> Chip:
        return CHIPS[self.name]

    @property
    def chips(self) -> int:
        return math.prod(self.shape) * self.slices

    def __str__(self) -> str:
        return f"{self.name}:{'x'.join(map(str, self.shape))}" + (f"*{self.slices}" if self.slices > 1 else "")

    def devices(self) -> list[jax.Device]:
        """Devices to compile for, without any hardware: for TPUs descriptions that libtpu makes, for other platforms as
        many CPU devices.

        Raises:
          InputError: libtpu is not installed, or this process has fewer CPU devices and can't get more.
        """
        if self.chip.platform == "tpu":
            return _tpu_devices(self)
        with contextlib.suppress(RuntimeError):  # JAX has made its devices already
            jax.config.update("jax_num_cpu_devices", self.chips)
        devices = jax.devices("cpu")
        if len(devices) < self.chips:
            raise InputError(f"this process has {len(devices)} CPU devices, {self} needs {self.chips}; start a new one")
        return devices[: self.chips]


def _tpu_devices(where: Topology) -> list[jax.Device]:
    name = f"{where.name}:{'x'.join(map(str, where.shape))}"
    several: dict[str, Any] = {"num_slices": where.slices} if where.slices > 1 else {}
    if where.chips == 1:
        several["chips_per_host_bounds"] = (1, 1, 1)
    os.environ |= {
        "TPU_SKIP_MDS_QUERY": "1",  # asks no metadata server
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",  # compiles beside other processes
        "TPU_ACCELERATOR_TYPE": "v5p-8",  # any: without one it complains
        "TPU_WORKER_HOSTNAMES": "localhost",
    }
    try:
        devices = topologies.get_topology_desc(platform="tpu", topology_name=name, **several).devices
    except (RuntimeError, jax.errors.JaxRuntimeError) as error:
        raise InputError(
            f"no TPU compiler for {name} ({first_line(error)}); pip install 'internvl_jax[tpu]'"
        ) from error
    if len(devices) != where.chips:
        raise InputError(
            f"{where} has {len(devices)} devices on {where.chips} chips; only chips of one device are planned"
        )
    return list(devices)
