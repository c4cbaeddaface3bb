"""Features of tiles that pass a tower elsewhere: what a vision server computes, and what a language server takes."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class EncodedTiles:
    """What the vision half makes of tiles, on the host.

    Attributes:
      features_GPD: at full resolution, in the dtype that the model computes in.
      compressed_GPD: at compressed resolution; None without a router.
      probability_G: float32, may the tiles be compressed? None without a router.
    """

    features_GPD: np.ndarray
    compressed_GPD: np.ndarray | None
    probability_G: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class RemoteFeatures:
    """What a request shows in place of tiles.

    Attributes:
      names: the digest of every tile of the request, in order.
      compress_G: bool, which tiles are compressed; all False without a router.
      features: of every tile `[P, D]` at the resolution that is kept, P being `tokens_per_tile` or
        `tokens_per_compressed_tile`; bfloat16 or float32, and finite.
    """

    names: tuple[bytes, ...]
    compress_G: np.ndarray
    features: tuple[np.ndarray, ...]
