"""From logits to the next token of every row, each row with its own parameters.

1. Tokens that nobody may write (image tokens, rows beyond the vocabulary) get no chance.
2. Shaping, for programs that have it: repetition, frequency and presence penalty, biases, a mask, as vLLM orders them.
3. Temperature, min-p, top-k, top-p, in this order.
4. A draw from the row's own random stream, or the best token at temperature 0.

Parameters are arrays over rows, so one compiled program serves mixed requests. The vocabulary is cut into blocks, each
whole on one device: what devices tell each other has a number for every block, never one for every token.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from internvl_jax.inference.engine.sampling_params import BIASES, SamplingParams
from internvl_jax.models import scopes
from internvl_jax.sharding import per_device, shard

_COMMON = 128  # a multiple of the sizes that a mesh's axes have


class Sampling(NamedTuple):
    """`SamplingParams` of B rows, what the device needs of plain ones."""

    temperature_B: jax.Array
    top_k_B: jax.Array
    top_p_B: jax.Array
    min_p_B: jax.Array
    seed_B: jax.Array


class Shaping(NamedTuple):
    """What changes logits before the draw.

    Attributes:
      repetition_B, presence_B, frequency_B: see `SamplingParams`.
      bias_ids, biases: [B, BIASES], the tokens with a bias, and the biases; negative ids fill up.
      min_B: no stop token before the answer has so many tokens.
      stops_BZ: the ids that end the answer; negative ids fill up.
      seen_BV: bool, which tokens are in prompt or answer.
      counts_BV: int16, how often tokens are in the answer.
      allowed_bits: int32 [B, V / 32 rounded up], which tokens a grammar allows: 32 to a number, least bit first.
    """

    repetition_B: jax.Array
    presence_B: jax.Array
    frequency_B: jax.Array
    bias_ids: jax.Array
    biases: jax.Array
    min_B: jax.Array
    stops_BZ: jax.Array
    seen_BV: jax.Array
    counts_BV: jax.Array
    allowed_bits: jax.Array


class Chosen(NamedTuple):
    """The next token of every row.

    Attributes:
      tokens_B: int32.
      logprobs_B: float32, their log-probabilities under the model itself: at temperature 1, over the whole table.
      best_ids: int32 [B, best], the likeliest tokens that may be written, the best one first.
      best_logprobs: float32 [B, best], their log-probabilities.
    """

    tokens_B: jax.Array
    logprobs_B: jax.Array
    best_ids: jax.Array
    best_logprobs: jax.Array


def stack_params(rows: Sequence[SamplingParams]) -> Sampling:
    """Host arrays of the rows' parameters."""
    return Sampling(
        np.array([row.temperature for row in rows], np.float32),
        np.array([row.top_k for row in rows], np.int32),
        np.array([row.top_p for row in rows], np.float32),
        np.array([row.min_p for row in rows], np.float32),
        np.array([row.seed for row in rows], np.uint32),
    )


def stack_shaping(rows: Sequence[SamplingParams], stops_BZ: np.ndarray, seen_BV: np.ndarray) -> Shaping:
    """Host arrays of the rows' parameters before their first tokens, everything allowed.

    Args:
      stops_BZ: see `Shaping`.
      seen_BV: bool, which tokens the prompts hold.
    """
    B, V = seen_BV.shape
    bias_ids, biases = np.full((B, BIASES), -1, np.int32), np.zeros((B, BIASES), np.float32)
    for b, row in enumerate(rows):
        for place, (token, bias) in enumerate(row.logit_bias):
            bias_ids[b, place], biases[b, place] = token, bias
    return Shaping(
        np.array([row.repetition_penalty for row in rows], np.float32),
        np.array([row.presence_penalty for row in rows], np.float32),
        np.array([row.frequency_penalty for row in rows], np.float32),
        bias_ids,
        biases,
        np.array([row.min_tokens for row in rows], np.int32),
        stops_BZ,
        seen_BV,
        np.zeros((B, V), np.int16),
        np.full((B, -(-V // 32)), -1, np.int32),
    )


def no_shaping(rows: int, vocab: int, stops: int) -> Shaping:
    """That of so many rows which ask for nothing, with room for so many stop ids."""
    B, V = rows, vocab
    zero_B = jnp.zeros(B, jnp.float32)
    return Shaping(
        repetition_B=zero_B + 1,
        presence_B=zero_B,
        frequency_B=zero_B,
        bias_ids=jnp.full((B, BIASES), -1, jnp.int32),
        biases=jnp.zeros((B, BIASES), jnp.float32),
        min_B=jnp.zeros(B, jnp.int32),
        stops_BZ=jnp.full((B, stops), -2, jnp.int32),
        seen_BV=jnp.zeros((B, V), bool),
        counts_BV=jnp.zeros((B, V), jnp.int16),
        allowed_bits=jnp.full((B, -(-V // 32)), -1, jnp.int32),
    )


def wrote(shaping: Shaping, tokens_B: jax.Array, goes_B: jax.Array) -> Shaping:
    """The rows' parameters after these tokens; `goes_B` is False for rows that have written none."""

    def own(
        seen_BV: jax.Array, counts_BV: jax.Array, ids_V: jax.Array, tokens_B: jax.Array, goes_B: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        V, rows = len(ids_V), jnp.arange(len(tokens_B))
        places_B = tokens_B - ids_V[0]
        places_B = jnp.where(goes_B & (places_B >= 0), places_B, V)
        seen_BV = seen_BV.at[rows, places_B].set(True, mode="drop")
        return seen_BV, counts_BV.at[rows, places_B].add(1, mode="drop")

    table = ("batch", "act_vocab")
    run = per_device(own, (table, table, ("act_vocab",), ("batch",), ("batch",)), (table, table))
    ids_V = jnp.arange(shaping.seen_BV.shape[1])
    seen_BV, counts_BV = run(shaping.seen_BV, shaping.counts_BV, ids_V, tokens_B, goes_B)
    return shaping._replace(seen_BV=seen_BV, counts_BV=counts_BV)


def choose(
    logits_BV: jax.Array,
    allowed_BV: jax.Array,
    sampling: Sampling,
    steps_B: jax.Array,
    uniform_B2: jax.Array,
    shaping: Shaping | None = None,
    best: int = 0,
) -> Chosen:
    """The next token of every row.

    Args:
      logits_BV: float32, as the model gives them.
      allowed_BV: the same, -inf at what nobody may write (see `ban`).
      sampling: the rows' parameters.
      steps_B: how many tokens the row has generated.
      uniform_B2: see `uniform`.
      shaping: what changes the logits before the draw, if anything does.
      best: how many of the likeliest tokens to report.
    """
    shaped_BV = allowed_BV if shaping is None else shape(allowed_BV, shaping, steps_B)
    tokens_B = draw(shaped_BV, sampling, uniform_B2)
    picked_B1 = jnp.take_along_axis(logits_BV, tokens_B[:, None], axis=1)
    whole_B1 = jax.nn.logsumexp(logits_BV, axis=1, keepdims=True)
    best_logits, best_ids = _best(allowed_BV, best)
    return Chosen(tokens_B, (picked_B1 - whole_B1)[:, 0], best_ids, best_logits - whole_B1)


def ban(logits_BV: jax.Array, vocab_size: int, banned: Sequence[int]) -> jax.Array:
    """Logits with -inf at ids from `vocab_size` on (unused rows of the table) and at `banned`."""
    ids_V = jnp.arange(logits_BV.shape[-1])
    bad_V = ids_V >= vocab_size
    for token in banned:
        bad_V |= ids_V == token
    return jnp.where(bad_V[None], -jnp.inf, logits_BV)


def shape(logits_BV: jax.Array, shaping: Shaping, steps_B: jax.Array) -> jax.Array:
    """Logits after penalties, biases and masks."""
    logits_BV = penalise(logits_BV, shaping.seen_BV, shaping.repetition_B)
    counts_BV = shaping.counts_BV.astype(jnp.float32)
    logits_BV -= shaping.frequency_B[:, None] * counts_BV
    logits_BV -= shaping.presence_B[:, None] * (counts_BV > 0)
    early_BZ = jnp.where((steps_B < shaping.min_B)[:, None], -jnp.inf, jnp.zeros(shaping.stops_BZ.shape))
    ids = jnp.concatenate([shaping.bias_ids, shaping.stops_BZ], axis=1)
    logits_BV = _add(logits_BV, ids, jnp.concatenate([shaping.biases, early_BZ], axis=1))
    V = logits_BV.shape[1]
    words_BV = jnp.repeat(shaping.allowed_bits, 32, axis=1)[:, :V]
    allowed_BV = (words_BV >> (jnp.arange(V) % 32)[None]) & 1 == 1
    return jnp.where(allowed_BV, logits_BV, -jnp.inf)


def penalise(logits_BV: jax.Array, seen_BV: jax.Array, penalty_B: jax.Array) -> jax.Array:
    """Repetition penalty (Keskar et al. 2019, as in Hugging Face): every seen token once, however often seen."""
    penalty_B1 = penalty_B[:, None]
    weaker_BV = jnp.where(logits_BV < 0, logits_BV * penalty_B1, logits_BV / penalty_B1)
    return jnp.where(seen_BV, weaker_BV, logits_BV)


def uniform(seed_B: jax.Array, steps_B: jax.Array) -> jax.Array:
    """float32 `[B, 2]` in [0, 1), what the token after so many others is drawn with: it depends on the row's seed and
    this number only, not on its neighbours.

    Two numbers a row choose a block of the vocabulary and a token in it, where `jax.random.categorical` makes one for
    every logit.
    """
    own = lambda seed, step: jax.random.uniform(jax.random.fold_in(jax.random.key(seed), step), (2,))
    return jax.vmap(own)(seed_B, steps_B)


def uniforms(seed_B: jax.Array, steps_B: jax.Array, count: jax.Array, most: int) -> jax.Array:
    """`uniform` of the next `count` tokens of every row, float32 `[most or more, B, 2]`; behind them stands anything.

    The hash is a loop of its own on CPU: made anew for every token, it is a tenth of the time of a small model.
    """
    together = min(16, most)
    block = jax.vmap(lambda n: uniform(seed_B, steps_B + n))
    put = lambda i, found: jax.lax.dynamic_update_slice_in_dim(
        found, block(i * together + jnp.arange(together)), i * together, 0
    )
    blocks = -(-most // together)
    nothing = jnp.zeros((blocks * together, len(seed_B), 2), jnp.float32)
    with jax.named_scope(scopes.turns_scope(blocks)):
        return jax.lax.fori_loop(0, -(-count // together), put, nothing)


def draw(logits_BV: jax.Array, sampling: Sampling, uniform_B2: jax.Array) -> jax.Array:
    """A token of every row, int32 [B]: drawn, or the best one at temperature 0, of equal ones the first.

    Args:
      logits_BV: float32, -inf where banned.
      sampling, uniform_B2: see `choose`.
    """
    B, V = logits_BV.shape
    count = _num_blocks(V)
    blocks = shard(logits_BV.reshape(B, count, V // count), "batch", "act_vocab", None)
    # Or XLA would make two products over the vocabulary of the two maxima, and lay it out once more for the second.
    highest = jax.lax.optimization_barrier(shard(jnp.max(blocks, axis=2), "batch", None))
    largest_B = jnp.max(highest, axis=1)
    drawn_B = sampling.temperature_B > 0
    temperature_B = jnp.where(drawn_B, sampling.temperature_B, 1)

    def distance(logits: jax.Array) -> jax.Array:
        return (largest_B[:, None, None] - logits) / temperature_B[:, None, None]

    def select(best_B: jax.Array) -> tuple[jax.Array, jax.Array]:
        limit_B = cutoff(lambda: distance(blocks), sampling, drawn_B)
        sums = _block_sums(_weights(distance(blocks), limit_B))
        return jnp.where(drawn_B, _pick(sums, uniform_B2[:, 0]), best_B), limit_B

    best_B = jnp.argmax(highest, axis=1)
    greedy = lambda best_B: (best_B, jnp.zeros(B))
    block_B, limit_B = jax.lax.cond(jnp.any(drawn_B), select, greedy, best_B)
    block = jnp.take_along_axis(blocks, block_B[:, None, None], axis=1)
    drawn_place_B = _pick(_weights(distance(block), limit_B)[:, 0], uniform_B2[:, 1])
    place_B = jnp.where(drawn_B, drawn_place_B, jnp.argmax(block[:, 0], axis=1))
    return (block_B * (V // count) + place_B).astype(jnp.int32)


def _num_blocks(V: int) -> int:
    """How many blocks a vocabulary has: near its square root, and whole ones for every device that shares it. It must
    not depend on the mesh, or a seed would give other answers there."""
    step = math.gcd(V, _COMMON)
    return min((n for n in range(step, V + 1, step) if V % n == 0), key=lambda n: abs(n - math.sqrt(V)))


def cutoff(distance: Callable[[], jax.Array], sampling: Sampling, drawn_B: jax.Array) -> jax.Array:
    """The largest distance that min-p, then top-k among what is left, then top-p keep, float32 [B].

    Tokens of equal distance stay together. What no row asks for costs nothing.

    Args:
      distance: makes float32 [B, blocks, width], how far logits are below the row's largest, in units of its
        temperature; called where they are needed, so that they are laid out nowhere else.
      sampling: the rows' parameters.
      drawn_B: bool, whether a row has a positive temperature.
    """

    def by_k(limit_B: jax.Array) -> jax.Array:
        distances = distance()
        enough = lambda limit_B: jnp.sum(_block_sums((distances <= limit_B[:, None, None]).astype(jnp.int32)), axis=1)
        nearest_B = _least(lambda limit_B: enough(limit_B) >= sampling.top_k_B, len(limit_B))
        return jnp.where(few_B, jnp.minimum(limit_B, nearest_B), limit_B)

    def by_p(limit_B: jax.Array) -> jax.Array:
        distances = distance()
        weights = _weights(distances, limit_B)
        mass = lambda weights: jnp.sum(_block_sums(weights), axis=1)
        wanted_B = sampling.top_p_B * mass(weights)
        within = lambda limit_B: mass(jnp.where(distances <= limit_B[:, None, None], weights, 0)) >= wanted_B
        return jnp.where(part_B, _least(within, len(limit_B)), limit_B)

    few_B, part_B = drawn_B & (sampling.top_k_B > 0), drawn_B & (sampling.top_p_B < 1)
    limit_B = -jnp.log(sampling.min_p_B)
    limit_B = jax.lax.cond(jnp.any(few_B), by_k, lambda limit_B: limit_B, limit_B)
    return jax.lax.cond(jnp.any(part_B), by_p, lambda limit_B: limit_B, limit_B)


def _least(enough: Callable[[jax.Array], jax.Array], B: int) -> jax.Array:
    """The least number from 0 to infinity that is enough, found bit by bit: float32 [B].

    Exact, with no sort and without moving a vocabulary that is spread over devices: 31 sums over it. On CPU, for 8 rows
    of 151,936 logits, a sort takes 25 times as long (2026-11, jax 0.10.2).
    """
    number = lambda bits_B: jax.lax.bitcast_convert_type(bits_B, jnp.float32)  # of positive floats in the same order

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low_B, high_B = bounds
        middle_B = low_B + ((high_B - low_B) >> 1)
        enough_B = enough(number(middle_B))
        return jnp.where(enough_B, low_B, middle_B + 1), jnp.where(enough_B, middle_B, high_B)

    infinity_B = jax.lax.bitcast_convert_type(jnp.full(B, jnp.inf, jnp.float32), jnp.int32)
    return number(jax.lax.fori_loop(0, 31, halve, (jnp.zeros_like(infinity_B), infinity_B))[1])


def _weights(distances: jax.Array, limit_B: jax.Array) -> jax.Array:
    return jnp.where(distances <= limit_B[:, None, None], jnp.exp(-distances), 0)


def _block_sums(values: jax.Array) -> jax.Array:
    """[B, blocks], the same on all devices that share a row."""
    return shard(jnp.sum(values, axis=2), "batch", None)


def _pick(weights: jax.Array, uniform_B: jax.Array) -> jax.Array:
    """The index that a uniform number falls on, each being as wide as its weight; never one of weight 0."""
    ends = jnp.cumsum(weights, axis=1)
    index_B = jnp.sum(ends <= uniform_B[:, None] * ends[:, -1:], axis=1)
    last_B = weights.shape[1] - 1 - jnp.argmax(weights[:, ::-1] > 0, axis=1)  # rounding may lead beyond it
    return jnp.minimum(index_B, last_B)


def _best(logits_BV: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """The largest logits and their ids, [B, count]: every device's own first, then the best of these."""

    def own(logits_BV: jax.Array, ids_V: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits, places = jax.lax.top_k(logits_BV, min(count, len(ids_V)))
        return logits, ids_V[places]

    inputs = ("batch", "act_vocab"), ("act_vocab",)
    logits, ids = per_device(own, inputs, ("batch", "act_vocab"))(logits_BV, jnp.arange(logits_BV.shape[1]))
    logits, places = jax.lax.top_k(shard(logits, "batch", None), count)
    return logits, jnp.take_along_axis(shard(ids, "batch", None), places, axis=1)


def _add(logits_BV: jax.Array, ids: jax.Array, values: jax.Array) -> jax.Array:
    """Logits with values added at ids, both [B, n]; negative ids and those beyond the vocabulary are left out."""

    def own(logits_BV: jax.Array, ids_V: jax.Array, ids: jax.Array, values: jax.Array) -> jax.Array:
        V = len(ids_V)
        places = ids - ids_V[0]
        places = jnp.where(places < 0, V, places)
        return logits_BV.at[jnp.arange(len(ids))[:, None], places].add(values, mode="drop")

    inputs = ("batch", "act_vocab"), ("act_vocab",), ("batch", None), ("batch", None)
    return per_device(own, inputs, ("batch", "act_vocab"))(logits_BV, jnp.arange(logits_BV.shape[1]), ids, values)
