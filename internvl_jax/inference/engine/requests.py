"""Requests, and what becomes of them on their way through the engine."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import ml_dtypes
import numpy as np

from internvl_jax.data import Processor
from internvl_jax.errors import InputError
from internvl_jax.inference.compression import MODEL_THRESHOLDS, Decided, Thresholds, kept
from internvl_jax.inference.engine.row_state import STOPS, Wanted
from internvl_jax.inference.engine.sampling import Shaping, stack_params, stack_shaping
from internvl_jax.inference.engine.sampling_params import SamplingParams
from internvl_jax.models import InternVLConfig
from internvl_jax.validation import all_finite

DIGEST = 16  # bytes
_FLOATS = (np.dtype(ml_dtypes.bfloat16), np.dtype(np.float32))


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


@dataclasses.dataclass(frozen=True, eq=False)
class RemoteFeatures:
    """What another process made of a request's tiles (`VisionTower`), the first tile's first.

    Attributes:
      names: the digest (`tile_features.digest`) of every tile.
      compress_G: bool, which tiles are compressed.
      features: of every tile [P, D], those of the branch that was chosen for it; bfloat16 or float32.
      probability_G: float32, the router's probability that a tile may be compressed, for whoever asks; None where none
        is known.
    """

    names: tuple[bytes, ...]
    compress_G: np.ndarray
    features: tuple[np.ndarray, ...]
    probability_G: np.ndarray | None = None

    @property
    def kept_names(self) -> list[bytes]:
        """What the features are kept by: by tile and branch, and otherwise than those of an engine's own tower, which
        always makes both branches.
        """
        branches = self.compress_G.tolist()
        return [bytes([1 + branch]) + name for name, branch in zip(self.names, branches, strict=True)]


@dataclasses.dataclass(frozen=True)
class Request:
    """A prompt: int32 tokens [T], its tiles [G, H, W, 3] (uint8, or normalised floats), and how to answer.

    The tokens are those of all tiles at full resolution; thresholds are for Flash models, which may leave some out.

    Attributes:
      seeds: one answer is written for each of them, for None the greedy one; without any, one as `sampling` has it.
      allow: takes an answer's tokens so far and returns which may follow, int32 [V / 32 rounded up], 32 tokens to a
        number, the least bit first. Such answers, and those beside them, wait for the host after each token.
      priority: requests of a lower number come first, those of the same in the order in which they came.
      features: those of the tiles, where another process has made them; then there are no tiles here, and what is
        compressed is decided. The tokens are still those of all tiles at full resolution.
      adapter: the name of the adapter that answers, see `Engine.put_adapter`; None: the model without any.
    """

    tokens_T: np.ndarray
    tiles_GHWC: np.ndarray
    sampling: SamplingParams
    thresholds: Thresholds | Decided = MODEL_THRESHOLDS
    seeds: tuple[int | None, ...] = ()
    allow: Callable[[Sequence[int]], np.ndarray] | None = None
    priority: int = 0
    features: RemoteFeatures | None = None
    adapter: str | None = None

    @property
    def samplings(self) -> list[SamplingParams]:
        """How each of its answers is written."""
        changes = ({"temperature": 0.0} if seed is None else {"seed": seed} for seed in self.seeds)
        return [dataclasses.replace(self.sampling, **change) for change in changes] or [self.sampling]

    @property
    def shaped(self) -> bool:
        """Whether programs without `Shaping` can't write the answer."""
        return self.allow is not None or self.sampling.shaped


class Seen(NamedTuple):
    """A request after the vision tower.

    Attributes:
      tokens_T: int32, without the image tokens that compressing saves.
      sources_T: int64, for every image token which feature it shows: its tile's number in the request, times the
        features of a tile, plus its place among them; -1 for the other tokens.
      keys_T: int64, equal where tokens are equal and show the same feature: prompts that begin with the same keys have
        the same keys and values there.
      probability_G: float32, the router's probability that a tile may be compressed; None where none is known.
    """

    tokens_T: np.ndarray
    sources_T: np.ndarray
    keys_T: np.ndarray
    probability_G: np.ndarray | None = None


class Token(NamedTuple):
    """A token of an answer.

    Attributes:
      id: the request.
      answer: which of its answers.
      token: the token's id; stop tokens are told too.
      logprob: its log-probability at temperature 1, over the whole table.
      number: how many tokens the answer has with it.
      end: why the answer ends with it: 'stop' or 'length'; None if it goes on.
      seen: what the model read before.
      best: (id, log-probability) of the best tokens in its place, as many as the request asks for.
      cached: how many tokens of the prompt had been read before, for another answer or an earlier request.
    """

    id: int
    answer: int
    token: int
    logprob: float
    number: int
    end: str | None
    seen: Seen
    best: tuple[tuple[int, float], ...] = ()
    cached: int = 0


def check(request: Request, config: InternVLConfig, vocabulary: Vocabulary) -> None:
    """Whether this model can read it.

    Raises:
      InputError: no tokens, tokens that it has not, image tokens that don't match the tiles, tiles or features of
        another size or type, thresholds for a model that has no router, too many stop ids, or ids that no token has.
    """
    if not len(request.tokens_T):
        raise InputError("the prompt has no tokens; give one")
    tokens_T, tiles_GHWC, count = np.asarray(request.tokens_T), request.tiles_GHWC, len(request.tiles_GHWC)
    if tokens_T.ndim != 1 or tokens_T.dtype.kind not in "iu":
        raise InputError(f"the prompt is {tokens_T.dtype} of shape {tokens_T.shape}; give a list of whole numbers")
    if tokens_T.min() < 0 or tokens_T.max() >= config.text.vocab:
        raise InputError(f"the prompt has a token outside of 0 to {config.text.vocab - 1}; use this model's tokenizer")
    if config.flash is None and request.thresholds != MODEL_THRESHOLDS:
        raise InputError("the request has thresholds but this model has no router; leave them out")
    if request.features is not None:
        if count or request.thresholds != MODEL_THRESHOLDS:
            raise InputError("the request has features of its tiles; leave tiles and thresholds out, or the features")
        _check_features(request.features, config)
        count = len(request.features.names)
    found, needed = int(np.sum(tokens_T == config.image_token_id)), config.tokens_per_tile * count
    if found != needed:
        raise InputError(
            f"the prompt has {found} image tokens, its {count} tiles need {needed}; "
            "make prompts with the model's own processor"
        )
    side = config.vision.image_size
    if len(tiles_GHWC) and tiles_GHWC.shape[1:] != (side, side, 3):
        raise InputError(
            f"the request's tiles have the shape {tiles_GHWC.shape[1:]}; the model's are {(side, side, 3)}"
        )
    dtype = tiles_GHWC.dtype
    if dtype != np.uint8 and dtype.kind != "f" and dtype not in _FLOATS:
        raise InputError(f"the request's tiles are {dtype}; give uint8 pixels, or floats that are normalised")
    stop_ids(vocabulary, request.sampling)
    named = [*request.sampling.stop_token_ids, *(token for token, _ in request.sampling.logit_bias)]
    if max(named, default=0) >= config.text.vocab:
        raise InputError(f"the request names token {max(named)}; this model's end at {config.text.vocab - 1}")


def _check_features(given: RemoteFeatures, config: InternVLConfig) -> None:
    counts = len(given.names), len(given.compress_G), len(given.features)
    if len(set(counts)) > 1 or given.compress_G.dtype != bool:
        raise InputError(
            f"the request has {counts[0]} names, {counts[1]} decisions ({given.compress_G.dtype}) and {counts[2]} "
            "arrays of features; give one of each for every tile, and decisions as bool"
        )
    if config.flash is None and given.compress_G.any():
        raise InputError("the request has features of compressed tiles but this model has no router; use one model")
    decided = zip(given.names, given.compress_G.tolist(), given.features, strict=True)
    for number, (name, compressed, features_PD) in enumerate(decided):
        tokens = config.tokens_per_compressed_tile if compressed else config.tokens_per_tile
        if len(name) != DIGEST:
            raise InputError(f"the name of tile {number} has {len(name)} bytes; give its digest of {DIGEST}")
        if features_PD.shape != (tokens, config.text.width) or features_PD.dtype not in _FLOATS:
            raise InputError(
                f"the features of tile {number} are {features_PD.dtype} of shape {features_PD.shape}; this model's are "
                f"bfloat16 or float32 of shape {(tokens, config.text.width)}"
            )
        if not all_finite(np.ascontiguousarray(features_PD)):
            raise InputError(f"the features of tile {number} are not finite; mend the vision server, and ask again")


def shown(
    request: Request,
    names: Sequence[bytes],
    probability_G: np.ndarray | None,
    config: InternVLConfig,
    adapter: int = 0,
) -> Seen:
    """The prompt that a model reads, once a Flash model's router has spoken.

    Args:
      names: what the features of the tiles are kept by.
      probability_G: the router's probability that a tile may be compressed; None without a router, or where the request
        brings decisions.
      adapter: the number of its adapter, see `Placed`.
    """
    tokens_T = np.asarray(request.tokens_T, np.int32)
    full, compressed = config.tokens_per_tile, 0
    compress_G = np.zeros(len(names), bool)
    if config.flash is not None:
        compressed = config.tokens_per_compressed_tile
        compress_G = (
            request.thresholds.decide(probability_G, config.flash)
            if request.features is None
            else request.features.compress_G
        )
        tokens_T = tokens_T[kept(tokens_T, compress_G, config)]
    starts = [g * (full + compressed) + full * each for g, each in enumerate(compress_G.tolist())]
    counts = [compressed if each else full for each in compress_G.tolist()]
    features = [np.arange(start, start + count) for start, count in zip(starts, counts, strict=True)]
    sources_T = np.full(len(tokens_T), -1, np.int64)
    keys_T = tokens_T.astype(np.int64)
    if features:
        image_T = tokens_T == config.image_token_id
        sources_T[image_T] = np.concatenate(features)
        seeds = np.frombuffer(b"".join(name[:8] for name in names), np.int64)
        number, place = np.divmod(sources_T[image_T], full + compressed)
        # Below zero, where no token is. Two features that share a key are as rare as two tiles that share a digest.
        keys_T[image_T] = -1 - ((seeds[number] ^ (place * 0x9E3779B97F4A7C1)) & (2**62 - 1))
    keys_T[0] ^= adapter << 32  # beyond all tokens; what begins otherwise has nothing in common
    told_G = probability_G if request.features is None else request.features.probability_G
    return Seen(tokens_T, sources_T, keys_T, told_G)


def stop_ids(vocabulary: Vocabulary, sampling: SamplingParams) -> np.ndarray:
    """Ids that end an answer, filled up to `STOPS`."""
    stops = sampling.stop_ids(vocabulary.stops)
    if len(stops) > STOPS:
        raise InputError(f"the request has {len(stops)} stop tokens; at most {STOPS} are possible")
    return np.array(stops + (-2,) * (STOPS - len(stops)), np.int32)  # -1 marks complete answers


def stack_wanted(
    vocabulary: Vocabulary,
    limits: Sequence[int] | np.ndarray,
    rows: Sequence[SamplingParams],
    adapters_B: np.ndarray | None,
) -> Wanted:
    """Host arrays of how rows are written; see `Wanted`."""
    return Wanted(
        np.array(limits, np.int32),
        np.stack([stop_ids(vocabulary, row) for row in rows]),
        stack_params(rows),
        adapters_B,
    )


def shape_rows(
    prompts: Sequence[np.ndarray],
    answers: Sequence[Sequence[int]],
    rows: Sequence[SamplingParams],
    stops_BZ: np.ndarray,
    allowed_bits: np.ndarray,
    vocab: int,
) -> Shaping:
    """Host arrays of what rows ask for, which have these prompts and these tokens of their answers.

    Args:
      stops_BZ, allowed_bits: see `Shaping`.
      vocab: rows of the model's table.
    """
    seen_BV, counts_BV = np.zeros((len(rows), vocab), bool), np.zeros((len(rows), vocab), np.int16)
    for b, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        seen_BV[b, prompt] = True
        seen_BV[b, list(answer)] = True
        np.add.at(counts_BV[b], list(answer), 1)
    shaping = stack_shaping(rows, stops_BZ, seen_BV)
    return shaping._replace(counts_BV=counts_BV, allowed_bits=allowed_bits)


def pad(array: np.ndarray, size: int) -> np.ndarray:
    """Zeros after the first dimension, up to `size`."""
    return np.concatenate([array, np.zeros((size - len(array), *array.shape[1:]), array.dtype)])
