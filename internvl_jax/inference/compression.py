"""Which tiles of a request a Flash model compresses, and what that does to its prompt.

Over all tiles of a request, p being the router's probability that a tile may be compressed:

    compress = p > quantile(p, relative threshold)  and  p >= absolute threshold

So a request's tile with the least p is never compressed, nor is a single one. A compressed tile keeps the first of its
<IMG_CONTEXT> tokens; positions count the tokens that are left.

Source: modeling_internvl_chat.py as released with the Flash models.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from internvl_jax.data import views
from internvl_jax.errors import InputError
from internvl_jax.models import FlashConfig, InternVLConfig
from internvl_jax.validation import Fraction, check_fields


@dataclasses.dataclass(frozen=True)
class Thresholds:
    """A request's own thresholds; None stands for the model's.

    Attributes:
      relative: 0 to 1, the share of tiles that are spared whatever the router says; 1 compresses nothing.
      absolute: a tile is compressed if the router's probability is at least this.
    """

    relative: Fraction | None = None
    absolute: Fraction | None = None

    def __post_init__(self) -> None:
        check_fields(self, "thresholds")

    def decide(self, probability_G: np.ndarray, config: FlashConfig) -> np.ndarray:
        """True where a tile is compressed.

        Args:
          probability_G: float32, the router's probability of every tile of one request.
        """
        if not len(probability_G):
            return np.zeros(0, bool)
        relative = config.relative_threshold if self.relative is None else self.relative
        absolute = config.absolute_threshold if self.absolute is None else self.absolute
        return (probability_G > quantile(probability_G, relative)) & (probability_G >= np.float32(absolute))


MODEL_THRESHOLDS = Thresholds()  # what a request has that names none


@dataclasses.dataclass(frozen=True)
class Decided:
    """In place of thresholds: what is compressed was decided elsewhere, tile by tile; no probability changes it."""

    compress: tuple[bool, ...]

    def decide(self, probability_G: np.ndarray, config: FlashConfig) -> np.ndarray:
        """See `Thresholds.decide`."""
        if len(probability_G) != len(self.compress):
            raise InputError(
                f"{len(self.compress)} tiles were decided on, but the request has {len(probability_G)}; name each once"
            )
        return np.array(self.compress, bool)


def quantile(probability_G: np.ndarray, share: float) -> np.float32:
    """torch.quantile, bit by bit: linear between neighbours, in float32 with a fused product and sum."""
    sorted_G = np.sort(probability_G.astype(np.float32))
    rank = np.float32(share) * np.float32(len(sorted_G) - 1)
    below, above = sorted_G[int(np.floor(rank))], sorted_G[int(np.ceil(rank))]
    weight, difference = rank - np.floor(rank), above - below
    if weight < 0.5:
        return np.float32(np.float64(below) + np.float64(weight) * np.float64(difference))
    return np.float32(np.float64(above) - np.float64(difference) * np.float64(1 - weight))


def kept(tokens_T: np.ndarray, compress_G: np.ndarray, config: InternVLConfig) -> np.ndarray:
    """bool [T]: the tokens of a prompt that stay.

    Args:
      tokens_T: the prompt, with as many image tokens as all tiles have at full resolution.
      compress_G: for every tile, in the order of the image tokens, whether it is compressed.
    """
    full, compressed = config.tokens_per_tile, config.tokens_per_compressed_tile
    return views.kept(tokens_T, compress_G, config.image_token_id, full, compressed)


def feature_index(tiles_J: Sequence[int] | np.ndarray, compress_J: np.ndarray, config: InternVLConfig) -> np.ndarray:
    """int32: for every image token of a row its place in a flat pool of features (`Features.pool_GPD`).

    Args:
      tiles_J: the places of the row's tiles in the pool.
      compress_J: whether each of these tiles is compressed.
    """
    full, compressed = config.tokens_per_tile, 0 if config.flash is None else config.tokens_per_compressed_tile
    starts_J = np.asarray(tiles_J, np.int32) * (full + compressed) + full * compress_J
    counts_J = np.where(compress_J, compressed, full)
    parts = [np.arange(start, start + count) for start, count in zip(starts_J, counts_J, strict=True)]
    return np.concatenate([np.zeros(0), *parts]).astype(np.int32)


def picture_tokens(tokens_T: np.ndarray, image_token_id: int) -> tuple[int, ...]:
    """Image tokens of every picture of a prompt: other tokens stand between any two pictures."""
    image_T = np.concatenate([[0], tokens_T == image_token_id, [0]])
    starts, ends = (np.flatnonzero(np.diff(image_T) == step) for step in (1, -1))
    return tuple((ends - starts).tolist())
