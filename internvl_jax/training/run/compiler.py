"""Options of the compiler, by accelerator and kind of model; what the installed compiler doesn't know is left out. All
programs of training that gather weights have them (a sampler's weights lie where its products are, and nothing of it
was compiled with them).

XLA would gather a weight piece by piece and add up as many partial products in HBM. With rows this long the gather is
a small part of a product's time (2026-11, libtpu 0.0.42: by the compiler's estimate a step of the 8B takes 1.4 times
as long with the pieces).

One fusion may take no more of a chip's fast memory than an option says, and its default is lower than what pays: with
65,536 KiB a step of the 8B on v5p takes 0.91 of the time, in the same main memory, and the largest products on v6e go
from 60 to 89 % of the peak (2026-11, libtpu 0.0.42, by the compiler's cycles). Where nothing was compiled with it the
default stays.
"""

import functools
import logging
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, SingleDeviceSharding

_LOG = logging.getLogger(__name__)
_WINDOWED = "xla_jf_spmd_threshold_for_windowed_einsum_mib"
_VMEM = "xla_tpu_scoped_vmem_limit_kib"
# By jax's device_kind, for dense models.
_SHARE = {"TPU v5": "65536", "TPU v5p": "65536", "TPU v6 lite": "65536"}


def jit(function: Callable, mesh: Mesh, experts: bool, **how: Any) -> Any:
    """`jax.jit` of a program of training, with the options for it.

    Args:
      mesh: the devices that it is for.
      experts: whether the model has some.
      how: see `jax.jit`.
    """
    return jax.jit(function, compiler_options=options(mesh, experts), **how)


def options(mesh: Mesh, experts: bool) -> dict[str, str]:
    """See `jit`."""
    # What a compiler knows is found by compiling, which a process does for devices of its own (or for none that are
    # there).
    devices = mesh.devices.flat
    device = next((each for each in devices if each.process_index == jax.process_index()), devices[0])
    if device.platform != "tpu":
        return {}
    wanted = {_WINDOWED: "1000000"}
    if not experts and (share := _SHARE.get(device.device_kind)):
        wanted[_VMEM] = share
    return known(wanted, device)


def known(wanted: Mapping[str, str], device: jax.Device) -> dict[str, str]:
    """Those options that the compiler for a device knows; each other one is a line in the log."""
    return dict(_known(tuple(wanted.items()), device))


@functools.cache
def _known(wanted: tuple[tuple[str, str], ...], device: jax.Device) -> tuple[tuple[str, str], ...]:
    """The compiler knows what it knows only by being asked to compile, and then it names one that it doesn't know."""
    number = jax.ShapeDtypeStruct((), jnp.float32, sharding=SingleDeviceSharding(device))
    while wanted:
        try:
            jax.jit(jnp.sin, compiler_options=dict(wanted)).lower(number).compile()
        except jax.errors.JaxRuntimeError as error:
            unknown = re.search(r"No such compile option: '(\w+)'", str(error))
            if unknown is None:
                raise
            _LOG.warning("the compiler for %s does not know %s, which is left out", device.device_kind, unknown[1])
            wanted = tuple((name, value) for name, value in wanted if name != unknown[1])
        else:
            break
    return wanted
