"""Decoupled vision and language servers: features of tiles over the network.

`wire` has the protocol, `vision_server` and `vision_client` are its ends.
"""

from internvl_jax.serving.dvd.dvd_settings import (
    VisionClientCounters,
    VisionClientLimits,
    VisionClientState,
    VisionServerCounters,
    VisionServerLimits,
    VisionServerState,
)
from internvl_jax.serving.dvd.tile_dispatch import VisionBusy, VisionUnavailable
from internvl_jax.serving.dvd.vision_client import VisionClient
from internvl_jax.serving.dvd.vision_server import VisionServer

__all__ = [
    "VisionBusy",
    "VisionClient",
    "VisionClientCounters",
    "VisionClientLimits",
    "VisionClientState",
    "VisionServer",
    "VisionServerCounters",
    "VisionServerLimits",
    "VisionServerState",
    "VisionUnavailable",
]
