"""Requests, and what a model sees of their pictures before it reads them."""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from internvl_jax.data import Processor
from internvl_jax.errors import InputError
from internvl_jax.inference.compression import MODEL_THRESHOLDS, Decided, Thresholds, feature_index, kept
from internvl_jax.inference.engine.buckets import fit
from internvl_jax.inference.engine.programs import Features, Programs
from internvl_jax.inference.engine.sampling_params import SamplingParams
from internvl_jax.models import InternVLConfig
from internvl_jax.sharding import Params

STOPS = 8  # stop ids of a row, its own and the model's; part of the compiled shapes


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """What generation has to know of a tokenizer.

    Attributes:
      size: ids from here on are unused rows of the model's table.
      banned: the ids that a model must not write: they stand for pixels.
      stops: the ids that end an answer.
    """

    size: int
    banned: tuple[int, ...]
    stops: tuple[int, ...]

    @classmethod
    def of(cls, processor: Processor) -> "Vocabulary":
        tokenizer = processor.tokenizer
        banned = (tokenizer.image_context, tokenizer.image_start, tokenizer.image_end)
        return cls(tokenizer.vocab_size, banned, processor.stop_ids)


@dataclasses.dataclass(frozen=True)
class Request:
    """A prompt: int32 tokens [T], its tiles [G, H, W, 3] (uint8, or normalised floats), and how to answer.

    The tokens are those of all tiles at full resolution; thresholds are for Flash models, which may leave some out.
    """

    tokens_T: np.ndarray
    tiles_GHWC: np.ndarray
    sampling: SamplingParams
    thresholds: Thresholds | Decided = MODEL_THRESHOLDS


class Seen(NamedTuple):
    """Requests after the vision tower, one entry each.

    Attributes:
      tokens: the prompts' tokens [T], without the image tokens that compressing saves.
      features: int32 [P], for every image token its place in the pool.
      pool_GPD: see `Features`; it lies on the device.
    """

    tokens: list[np.ndarray]
    features: list[np.ndarray]
    pool_GPD: jax.Array


class Sight:
    """The vision tower, as a generator uses it.

    Args:
      config: the model's config.
      dtype: the dtype of features.
      programs: the model's programs.
      sizes: the numbers of tiles that may be encoded together.
    """

    def __init__(self, config: InternVLConfig, dtype: jnp.dtype, programs: Programs, sizes: tuple[int, ...]):
        self._config, self._programs, self._sizes = config, programs, sizes
        full, compressed = config.tokens_per_tile, config.tokens_per_compressed_tile
        plain = config.flash is None
        blank_GPD = jnp.zeros((1, full if plain else full + compressed, config.text.width), dtype)
        self._blank = Features(blank_GPD, None if plain else jnp.zeros(1))
        self._fewest = full if plain else compressed  # image tokens of a tile

    def image_slots(self, prompt: int) -> int:
        """How many image tokens a prompt of this length may have: as many as whole tiles fill."""
        return self._fewest * max(1, prompt // self._fewest)

    def encode(self, params: Params, tiles_GHWC: np.ndarray) -> Features:
        """Features of tiles, their number rounded up; more than the largest number are encoded in parts."""
        G, largest = len(tiles_GHWC), self._sizes[-1]
        if not G:
            return self._blank
        size = fit("image tiles", min(G, largest), self._sizes)
        parts = [pad(tiles_GHWC[start : start + size], size) for start in range(0, G, size)]
        features = [self._programs.encode(params, part) for part in parts]
        return features[0] if len(features) == 1 else jax.tree.map(lambda *x: jnp.concatenate(x), *features)

    def look(self, params: Params, requests: Sequence[Request]) -> Seen:
        """Encodes the tiles of requests and decides which of them are compressed, each request by itself.

        Raises:
          InputError: a prompt's image tokens don't match its tiles, or thresholds for a model that has no router.
        """
        for i, request in enumerate(requests):
            self._check(i, request)
        tiles_GHWC, which = _distinct([request.tiles_GHWC for request in requests])
        features = self.encode(params, tiles_GHWC)
        # A Flash model's prompts have no length before the router has spoken: here the host waits for it.
        probability_G = None if features.probability_G is None else np.asarray(features.probability_G)
        seen = Seen([], [], features.pool_GPD)
        for request, tiles_J in zip(requests, which, strict=True):
            compress_J = np.zeros(len(tiles_J), bool)
            if probability_G is not None:
                compress_J = request.thresholds.decide(probability_G[tiles_J], self._config.flash)
            tokens_T = np.asarray(request.tokens_T, np.int32)
            seen.tokens.append(tokens_T[kept(tokens_T, compress_J, self._config)])
            seen.features.append(feature_index(tiles_J, compress_J, self._config))
        return seen

    def _check(self, i: int, request: Request) -> None:
        if not len(request.tokens_T):
            raise InputError(f"request {i} has no tokens; give a prompt")
        if self._config.flash is None and request.thresholds != MODEL_THRESHOLDS:
            raise InputError(f"request {i} has thresholds but this model has no router; leave them out")
        found = int(np.sum(np.asarray(request.tokens_T) == self._config.image_token_id))
        needed = self._config.tokens_per_tile * len(request.tiles_GHWC)
        if found != needed:
            raise InputError(
                f"request {i} has {found} image tokens, its {len(request.tiles_GHWC)} tiles need {needed}; "
                "make prompts with the model's own processor"
            )


def stop_ids(i: int, vocabulary: Vocabulary, sampling: SamplingParams) -> np.ndarray:
    """Ids that end the answer of request i, filled up to `STOPS`."""
    stops = sampling.stop_ids(vocabulary.stops)
    if len(stops) > STOPS:
        raise InputError(f"request {i} has {len(stops)} stop tokens; at most {STOPS} are possible")
    return np.array(stops + (-2,) * (STOPS - len(stops)), np.int32)  # -1 marks complete answers


def check_plain(i: int, sampling: SamplingParams, names: Sequence[str], who: str) -> None:
    """Raises InputError where request i has one of these parameters other than by default; `who` doesn't do that."""
    plain = SamplingParams()
    for name in names:
        if getattr(sampling, name) != getattr(plain, name):
            raise InputError(
                f"request {i} has {name} {getattr(sampling, name)!r}, which {who}; leave it at {getattr(plain, name)!r}"
            )


def pad(array: np.ndarray, size: int) -> np.ndarray:
    """Zeros after the first dimension, up to `size`."""
    return np.concatenate([array, np.zeros((size - len(array), *array.shape[1:]), array.dtype)])


def _distinct(tiles: Sequence[np.ndarray]) -> tuple[np.ndarray, list[list[int]]]:
    """All different tiles, and for every row the numbers of its own."""
    numbers: dict[bytes, int] = {}
    found: list[np.ndarray] = []
    which: list[list[int]] = []
    for tiles_GHWC in tiles:
        row = []
        for tile_HWC in tiles_GHWC:
            digest = hashlib.blake2b(np.ascontiguousarray(tile_HWC).data, digest_size=16).digest()
            if digest not in numbers:
                numbers[digest] = len(found)
                found.append(tile_HWC)
            row.append(numbers[digest])
        which.append(row)
    return np.stack(found) if found else np.zeros((0,)), which
