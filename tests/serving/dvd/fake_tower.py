"""A tower that needs no model: features are pixels, the router's probability is the red of the first pixel."""

import asyncio
import dataclasses
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import ml_dtypes
import numpy as np

from internvl_jax.inference import MODEL_THRESHOLDS, EncodedTiles, RemoteFeatures, Thresholds, digest
from internvl_jax.models import FlashConfig, InternVLConfig, TextConfig, VisionConfig
from internvl_jax.serving.dvd.dvd_settings import VisionClientLimits, VisionServerLimits
from internvl_jax.serving.dvd.vision_client import VisionClient
from internvl_jax.serving.dvd.vision_server import VisionServer

SIDE, WIDTH = 56, 8
VISION = VisionConfig(SIDE, 14, 8, 1, 1, 8, "layer_norm", 1e-6, True, False, 0.0, 0.1, 0.02)
TEXT = TextConfig("qwen3", 100, WIDTH, 1, 1, 1, 8, 8, None, None, 1e6, None, None, 1e-6, False, 0.02)
PLAIN = InternVLConfig(VISION, TEXT, 0.5, 5, None)  # 4 tokens a tile
FLASH = dataclasses.replace(PLAIN, flash=FlashConfig(0.0, 0.5, 1, 0.0))  # 4 or 1
MODEL, WEIGHTS, SECRET = b"model", b"weights", b"a secret of the tests"
HASTY = VisionClientLimits(heartbeat=0.2, timeout=1.0, total=10.0, absent=1.0)


class FakeTower:
    """Attributes:
    sizes: how many tiles passed together, batch by batch.
    gate: tiles pass while it is set.
    """

    def __init__(self, config: InternVLConfig, delay: float = 0.0, dtype: Any = ml_dtypes.bfloat16):
        self.config, self.delay, self.dtype, self.sizes, self.gate = (
            config,
            delay,
            dtype,
            list[int](),
            threading.Event(),
        )
        self.gate.set()

    def __call__(self, tiles_GHWC: np.ndarray) -> EncodedTiles:
        self.sizes.append(len(tiles_GHWC))
        time.sleep(self.delay)
        assert self.gate.wait(20)
        numbers = tiles_GHWC.reshape(len(tiles_GHWC), -1).astype(np.float32) / 7
        cut = lambda tokens, start: (
            numbers[:, start : start + tokens * WIDTH].reshape(-1, tokens, WIDTH).astype(self.dtype)
        )
        full_GPD = cut(self.config.tokens_per_tile, 1)
        if self.config.flash is None:
            return EncodedTiles(full_GPD, None, None)
        probability_G = tiles_GHWC[:, 0, 0, 0].astype(np.float32) / 255
        return EncodedTiles(full_GPD, cut(self.config.tokens_per_compressed_tile, 100), probability_G)


def tiles(*seeds: int) -> np.ndarray:
    """A tile for each seed."""
    return np.stack([np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), np.uint8) for seed in seeds])


def local(
    tiles_GHWC: np.ndarray, config: InternVLConfig, thresholds: Thresholds = MODEL_THRESHOLDS, dtype: Any = None
) -> RemoteFeatures:
    """What comes out without a wire."""
    encoded = FakeTower(config, dtype=dtype or ml_dtypes.bfloat16)(tiles_GHWC)
    compress_G = np.zeros(len(tiles_GHWC), bool)
    if config.flash is not None:
        compress_G = thresholds.decide(encoded.probability_G, config.flash)
    kept = [encoded.compressed_GPD[i] if c else encoded.features_GPD[i] for i, c in enumerate(compress_G)]
    return RemoteFeatures(tuple(digest(tile_HWC) for tile_HWC in tiles_GHWC), compress_G, tuple(kept))


def same(ours: RemoteFeatures, theirs: RemoteFeatures) -> bool:
    """Whether all bits are equal."""
    pairs = list(zip(ours.features, theirs.features, strict=True))
    bits = all(a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes() for a, b in pairs)
    return bits and ours.names == theirs.names and ours.compress_G.tolist() == theirs.compress_G.tolist()


def server(tower: FakeTower, address: str = "127.0.0.1:0", **changes: Any) -> VisionServer:
    """Not started."""
    limits = VisionServerLimits(**{"timeout": 1.0, **changes.pop("limits", {})})
    settings = {"model": MODEL, "weights": WEIGHTS, "secret": SECRET, "limits": limits, **changes}
    return VisionServer(tower, tower.config, address, **settings)


def client(config: InternVLConfig, *addresses: str, **changes: Any) -> VisionClient:
    """Not started."""
    limits = dataclasses.replace(HASTY, **changes.pop("limits", {}))
    return VisionClient(
        addresses,
        config,
        **{"model": MODEL, "dtype": np.dtype(np.float32), "secret": SECRET, "limits": limits, **changes},
    )


def talk(asking: VisionClient, conversation: Callable[[VisionClient], Awaitable[Any]]) -> Any:
    """Starts a client, lets it talk, closes it."""

    async def whole() -> Any:
        await asking.start()
        try:
            return await conversation(asking)
        finally:
            await asking.close()

    return asyncio.run(whole())


async def until(true: Callable[[], bool], seconds: float = 5.0) -> None:
    """Waits for something that has to come."""
    ends = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < ends, "it did not come"
        await asyncio.sleep(0.005)


def serve_for_ever(port: int, flash: bool, delay: float, report: Any) -> None:
    """What a process does that is about to be killed; says its address."""
    with server(FakeTower(FLASH if flash else PLAIN, delay), f"127.0.0.1:{port}") as serving:
        report.send(serving.address)
        serving.wait()


def ask_for_ever(address: str) -> None:
    """What a client does that is about to be killed."""

    async def conversation(asking: VisionClient) -> None:
        for number in range(1 << 30):
            await asyncio.gather(*(asking.features(tiles(number * 20 + n, n)) for n in range(20)))

    talk(client(PLAIN, address), conversation)
