"""The language server's side: features of tiles, from whichever vision server is there.

    client = VisionClient(["127.0.0.1:5600"], config, model=..., dtype=...)
    await client.start()
    features = await client.features(tiles_GHWC)
    await client.close()

All state belongs to the thread of `tile_dispatch`; `wire` has the protocol.
"""

import asyncio
import itertools
from collections.abc import Sequence
from typing import Literal

import numpy as np

from internvl_jax.errors import InputError
from internvl_jax.inference import MODEL_THRESHOLDS, RemoteFeatures, Thresholds, digest
from internvl_jax.models import InternVLConfig
from internvl_jax.serving.dvd import greeting
from internvl_jax.serving.dvd.dvd_settings import VisionClientCounters, VisionClientLimits, VisionClientState
from internvl_jax.serving.dvd.feature_request import FeatureRequest
from internvl_jax.serving.dvd.tile_dispatch import TileDispatch
from internvl_jax.serving.dvd.wire_messages import MOST_ENTRIES

_LOOK = 0.01  # seconds between looks at first attempts


class VisionClient:
    """Asks vision servers for features.

    Args:
      addresses: `HOST:PORT` or `ipc://PATH` of each server; other than loopback only with a secret.
      config: the model's config.
      model: fingerprint of config, preprocessing and dtype, which servers must have too; at most 64 bytes.
      dtype: of features, the same as in `model`.
      secret: shared with the servers; at least 16 bytes.
      limits: see `VisionClientLimits`.

    Raises:
      InputError: addresses, secret or fingerprint can't be used.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        config: InternVLConfig,
        *,
        model: bytes,
        dtype: np.dtype,
        secret: bytes | None = None,
        limits: VisionClientLimits | None = None,
    ):
        greeting.check_secret(secret)
        endpoints = [greeting.endpoint(address, secret) for address in addresses]
        if not endpoints or len(set(endpoints)) < len(endpoints):
            raise InputError(f"vision servers {', '.join(addresses) or '(none)'}; name at least one, and each once")
        self._limits, self._side, self._flash = limits or VisionClientLimits(), config.vision.image_size, config.flash
        self._dispatch = TileDispatch(endpoints, config, greeting.filled(model), secret, self._limits, dtype)
        self._numbers = itertools.count(1)

    @property
    def counters(self) -> VisionClientCounters:
        """What has happened since the start."""
        return self._dispatch.counters

    @property
    def state(self) -> VisionClientState:
        """What is there, a moment ago at most."""
        return self._dispatch.state

    @property
    def status(self) -> Literal["ok", "degraded", "unavailable"]:
        """Whether all servers are there, some or none."""
        ready = [link.ready for link in self._dispatch.links]
        return "ok" if all(ready) else "degraded" if any(ready) else "unavailable"

    async def start(self) -> None:
        """Connects; a server that can't be reached is tried again and again.

        Raises:
          InputError: a server refuses us, or we it: another secret, version, model or weights.
        """
        self._dispatch.start()
        links = self._dispatch.links
        while not all(link.tried for link in links):
            await asyncio.sleep(_LOOK)
        if refusals := [f"vision server {link.address}: {link.reason}" for link in links if link.refused]:
            await self.close()
            raise InputError("; ".join(refusals))

    async def close(self) -> None:
        """Ends all connections; requests in progress raise `VisionUnavailable`."""
        await asyncio.to_thread(self._dispatch.end)

    async def features(self, tiles_GHWC: np.ndarray, thresholds: Thresholds = MODEL_THRESHOLDS) -> RemoteFeatures:
        """The features of a request's tiles, at the resolution that is kept.

        Cancelling gives back what the request holds.

        Args:
          tiles_GHWC: uint8 `[G, side, side, 3]`; may not change meanwhile.
          thresholds: with a router, what decides which tiles are compressed.

        Raises:
          VisionUnavailable: no server gave them in time (`VisionBusy`: others were before it for too long).
          InputError: the tiles are too many, or no tiles.
        """
        side = self._side
        if tiles_GHWC.dtype != np.uint8 or tiles_GHWC.shape[1:] != (side, side, 3) or len(tiles_GHWC) > MOST_ENTRIES:
            raise InputError(
                f"tiles {tiles_GHWC.dtype}{list(tiles_GHWC.shape)}; give uint8[G, {side}, {side}, 3], G up to "
                f"{MOST_ENTRIES}"
            )
        if not len(tiles_GHWC):
            return RemoteFeatures((), np.zeros(0, bool), ())
        names = await asyncio.to_thread(lambda: [digest(tile_HWC) for tile_HWC in tiles_GHWC])
        request = FeatureRequest(next(self._numbers), names, tiles_GHWC, thresholds, self._flash)
        self._dispatch.ask(request)
        try:
            return await asyncio.wrap_future(request.answer)
        finally:
            self._dispatch.forget(request)
