"""From logits to the next token of every row, each row with its own parameters.

1. Tokens that nobody may write (image tokens, rows beyond the vocabulary) get no chance.
2. Repetition penalty, temperature, top-k, top-p, in this order, as Hugging Face's `generate` applies them.
3. A draw from the row's own random stream, or the best token at temperature 0.

Parameters are arrays over rows, so one compiled program serves mixed requests.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from msgspec import Meta

from internvl_jax.errors import InputError
from internvl_jax.validation import Positive, check_fields, nearest

_OPENAI = {"max_tokens": "max_new_tokens", "max_completion_tokens": "max_new_tokens", "stop": "stop_strings"}


@dataclasses.dataclass(frozen=True)
class SamplingParams:
    """How one answer is written.

    Attributes:
      max_new_tokens: the answer ends after so many tokens, the stop token included.
      temperature: 0 takes the best token each time.
      top_k: draw from the k best tokens only; 0 for all.
      top_p: draw from the smallest set of best tokens that holds this probability; 1 for all.
      repetition_penalty: divides positive and multiplies negative logits of tokens in prompt or answer; 1 for none.
      seed: the seed of the row's random stream.
      stop_token_ids: ids that end the answer besides the model's own.
      stop_strings: end the answer where one of them begins; it isn't part of the answer.
    """

    max_new_tokens: Annotated[int, Meta(ge=1, lt=2**31)] = 256
    temperature: Annotated[float, Meta(ge=0, le=10**6)] = 0.0
    top_k: Annotated[int, Meta(ge=0, lt=2**31)] = 0
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    repetition_penalty: Positive = 1.0
    seed: Annotated[int, Meta(ge=0, lt=2**32)] = 0
    stop_token_ids: tuple[Annotated[int, Meta(ge=0, lt=2**31)], ...] = ()
    stop_strings: tuple[Annotated[str, Meta(min_length=1)], ...] = ()

    def __post_init__(self) -> None:
        check_fields(self, "sampling")
        for name in ("stop_token_ids", "stop_strings"):  # a frozen value is hashed
            object.__setattr__(self, name, tuple(getattr(self, name)))

    @classmethod
    def named(cls, **values: Any) -> "SamplingParams":
        """From the names of fields, or OpenAI's: `max_tokens` or `max_completion_tokens`, and `stop`, a text or
        several. Lists may stand for tuples.

        Raises:
          InputError: a name that is none of these or given twice, or a value that can't be.
        """
        fields = {field.name for field in dataclasses.fields(cls)}
        params: dict[str, Any] = {}
        for name, value in values.items():
            field = _OPENAI.get(name, name)
            if field not in fields:
                known = sorted([*fields, *_OPENAI])
                raise InputError(f"sampling has no parameter {name!r}{nearest(name, known)}; it has {', '.join(known)}")
            if field in params:
                raise InputError(f"sampling has {field} twice, as {name} too; give one of them")
            value = (value,) if name == "stop" and isinstance(value, str) else value
            params[field] = tuple(value) if isinstance(value, list) else value
        return cls(**params)


class Sampling(NamedTuple):
    """`SamplingParams` of B rows, what the device needs of them."""

    temperature_B: jax.Array
    top_k_B: jax.Array
    top_p_B: jax.Array
    penalty_B: jax.Array
    seed_B: jax.Array


def stack_params(rows: Sequence[SamplingParams]) -> Sampling:
    """Host arrays of the rows' parameters."""
    return Sampling(
        np.array([row.temperature for row in rows], np.float32),
        np.array([row.top_k for row in rows], np.int32),
        np.array([row.top_p for row in rows], np.float32),
        np.array([row.repetition_penalty for row in rows], np.float32),
        np.array([row.seed for row in rows], np.uint32),
    )


def ban(logits_BV: jax.Array, vocab_size: int, banned: Sequence[int]) -> jax.Array:
    """Logits with -inf at ids from `vocab_size` on (unused rows of the table) and at `banned`."""
    ids_V = jnp.arange(logits_BV.shape[-1])
    bad_V = ids_V >= vocab_size
    for token in banned:
        bad_V |= ids_V == token
    return jnp.where(bad_V[None], -jnp.inf, logits_BV)


def penalise(logits_BV: jax.Array, seen_BV: jax.Array, penalty_B: jax.Array) -> jax.Array:
    """Repetition penalty (Keskar et al. 2019, as in Hugging Face): every seen token once, however often seen."""
    penalty_B1 = penalty_B[:, None]
    weaker_BV = jnp.where(logits_BV < 0, logits_BV * penalty_B1, logits_BV / penalty_B1)
    return jnp.where(seen_BV, weaker_BV, logits_BV)


def keep_best(logits_BV: jax.Array, top_k_B: jax.Array, top_p_B: jax.Array) -> jax.Array:
    """Logits with -inf outside the row's top-k and, among those, outside its top-p; equal logits stay together."""
    V = logits_BV.shape[-1]
    best_BV = -jnp.sort(-logits_BV, axis=-1)
    k_B1 = jnp.where(top_k_B == 0, V, jnp.minimum(top_k_B, V))[:, None]
    best_BV = jnp.where(jnp.arange(V)[None] < k_B1, best_BV, -jnp.inf)
    chance_BV = jax.nn.softmax(best_BV, axis=-1)
    before_BV = jnp.cumsum(chance_BV, axis=-1) - chance_BV
    # At top_p 1 the sum of a long tail rounds to 1 before its end: such a row keeps all.
    inside_BV = (before_BV < top_p_B[:, None]) | (top_p_B[:, None] >= 1)
    inside_BV &= best_BV > -jnp.inf
    least_B1 = jnp.min(jnp.where(inside_BV, best_BV, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits_BV >= least_B1, logits_BV, -jnp.inf)


def cut(logits_BV: jax.Array, drawn_B: jax.Array, top_k_B: jax.Array, top_p_B: jax.Array) -> jax.Array:
    """`keep_best`, if any row that is drawn asks for it: sorting a vocabulary costs more than all else here.

    Args:
      logits_BV: the logits, already divided by the rows' temperatures.
      drawn_B: bool, whether a row has a positive temperature.
      top_k_B, top_p_B: see `SamplingParams`.
    """
    asked = jnp.any(drawn_B & ((top_k_B > 0) | (top_p_B < 1)))
    return jax.lax.cond(asked, keep_best, lambda logits_BV, *_: logits_BV, logits_BV, top_k_B, top_p_B)


def draw(logits_BV: jax.Array, temperature_B: jax.Array, uniform_B2: jax.Array) -> jax.Array:
    """A token of every row from the whole distribution, int32 [B]; the best one at temperature 0.

    Two uniform numbers a row choose a block of the vocabulary and a token in it, where `jax.random.categorical` makes
    one for every logit.

    Args:
      logits_BV: float32, -inf where banned.
      uniform_B2: random numbers in [0, 1).
    """
    B, V = logits_BV.shape
    width = min((part for part in range(1, V + 1) if V % part == 0), key=lambda part: abs(part - math.sqrt(V)))
    drawn_B = temperature_B > 0
    largest_B1 = jnp.max(logits_BV, axis=-1, keepdims=True)
    weights_BV = jnp.exp((logits_BV - largest_B1) / jnp.where(drawn_B, temperature_B, 1)[:, None])
    blocks = weights_BV.reshape(B, V // width, width)
    block_B = _pick(jnp.sum(blocks, axis=2), uniform_B2[:, 0])
    inside = jnp.take_along_axis(blocks, block_B[:, None, None], axis=1)[:, 0]
    token_B = block_B * width + _pick(inside, uniform_B2[:, 1])
    # Slow on CPU, and rollouts rarely ask for it.
    best = lambda logits_BV: jnp.where(drawn_B, token_B, jnp.argmax(logits_BV, axis=-1))
    return jax.lax.cond(jnp.all(drawn_B), lambda _: token_B, best, logits_BV).astype(jnp.int32)


def _pick(weights: jax.Array, uniform_B: jax.Array) -> jax.Array:
    """The index that a uniform number falls on, each being as wide as its weight; never one of weight 0."""
    ends = jnp.cumsum(weights, axis=1)
    index_B = jnp.sum(ends <= uniform_B[:, None] * ends[:, -1:], axis=1)
    last_B = weights.shape[1] - 1 - jnp.argmax(weights[:, ::-1] > 0, axis=1)  # rounding may lead beyond it
    return jnp.minimum(index_B, last_B)


def sample(logits_BV: jax.Array, sampling: Sampling, seen_BV: jax.Array, step_B: jax.Array) -> jax.Array:
    """The next token of every row, int32 [B].

    Args:
      logits_BV: float32, -inf where banned.
      sampling: the rows' parameters.
      seen_BV: which tokens the row holds so far.
      step_B: how many tokens the row has generated: its draw depends on its seed and this only, not on its neighbours.
    """
    logits_BV = penalise(logits_BV, seen_BV, sampling.penalty_B)
    greedy_B = jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    drawn_B = sampling.temperature_B > 0

    def draw(logits_BV: jax.Array) -> jax.Array:
        logits_BV = logits_BV / jnp.where(drawn_B, sampling.temperature_B, 1)[:, None]
        logits_BV = cut(logits_BV, drawn_B, sampling.top_k_B, sampling.top_p_B)
        key_B = jax.vmap(lambda seed, step: jax.random.fold_in(jax.random.key(seed), step))(sampling.seed_B, step_B)
        chosen_B = jax.vmap(jax.random.categorical)(key_B, logits_BV).astype(jnp.int32)
        return jnp.where(drawn_B, chosen_B, greedy_B)

    return jax.lax.cond(jnp.any(drawn_B), draw, lambda _: greedy_B, logits_BV)
