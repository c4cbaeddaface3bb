"""What the device knows of rows, and what its programs take and return."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from internvl_jax.inference.engine.sampling import Sampling, Shaping
from internvl_jax.models import Cache
from internvl_jax.sharding import Params, shard, whole

STOPS = 8  # stop ids of a row, its own and the model's; part of the compiled shapes


class Features(NamedTuple):
    """What the vision tower makes of tiles.

    Attributes:
      pool_GPD: the features of every tile; in Flash models those at full resolution, then the compressed ones.
      probability_G: float32, the probability that a tile may be compressed; None in models that are not Flash.
    """

    pool_GPD: jax.Array
    probability_G: jax.Array | None


class Wanted(NamedTuple):
    """How answers are written, what the device needs of it.

    Attributes:
      limits_B: how many tokens may be generated.
      stops_BZ: the ids that end the answer; negative ids fill up.
      sampling: how tokens are drawn.
      adapters_B: the place of the adapter that writes; None where the model has no places.
    """

    limits_B: jax.Array
    stops_BZ: jax.Array
    sampling: Sampling
    adapters_B: jax.Array | None = None

    def ends(self, tokens_B: jax.Array, steps_B: jax.Array) -> jax.Array:
        """bool [B], whether answers of so many tokens end with these."""
        return jnp.any(tokens_B[:, None] == self.stops_BZ, axis=1) | (steps_B >= self.limits_B)


class Part(NamedTuple):
    """Parts of prompts, for some rows of one class.

    Attributes:
      rows_B: the rows' numbers within the class and their device, of every device equally many.
      tokens_BT: the tokens, padded.
      starts_B: how many tokens of a prompt its row holds.
      counts_B: how many tokens come to it; 0 for a row that is padding.
      features_BPD: features of image tokens, those of every row in their order; None where there are no such tokens.
      adapters_B: see `Wanted`.
    """

    rows_B: jax.Array
    tokens_BT: jax.Array
    starts_B: jax.Array
    counts_B: jax.Array
    features_BPD: jax.Array | None
    adapters_B: jax.Array | None = None


class Begin(NamedTuple):
    """Rows whose prompts are read.

    Attributes:
      picks_B: for every one the row of the logits that are its own.
      rows_B: its number among all rows; one beyond the last is padding.
      lengths_B, steps_B, wanted: see `State`; a row that was put back has steps already.
      shaped: what they ask for besides; None where no row does.
    """

    picks_B: jax.Array
    rows_B: jax.Array
    lengths_B: jax.Array
    steps_B: jax.Array
    wanted: Wanted
    shaped: Shaping | None


class State(NamedTuple):
    """All rows, those that nobody has too.

    Attributes:
      cache: the keys and values of all tokens but the last.
      tokens_B: the last token, not yet in the cache.
      lengths_B: how many tokens the cache holds, which is the next slot and position.
      steps_B: how many tokens were generated.
      done_B: bool, whether the row has nothing to write.
      wanted: how each row's answer is written.
    """

    cache: Cache
    tokens_B: jax.Array
    lengths_B: jax.Array
    steps_B: jax.Array
    done_B: jax.Array
    wanted: Wanted


class Joining(NamedTuple):
    """Rows that go on with answers whose first tokens are known.

    Attributes:
      real_B: bool, which rows do.
      tokens_B, lengths_B, steps_B, wanted: see `State`.
    """

    real_B: jax.Array
    tokens_B: jax.Array
    lengths_B: jax.Array
    steps_B: jax.Array
    wanted: Wanted


class Written(NamedTuple):
    """Tokens that a program wrote.

    Attributes:
      tokens_BW: -1 where a row wrote none.
      logprobs_BW: their log-probabilities at temperature 1, over the whole table.
      best_ids, best_logprobs: the best tokens beside each of them, `[B, W, best]`.
      routes_LBWK: int16, the experts of the tokens that they follow; None if nobody notes them, and of first tokens.
    """

    tokens_BW: jax.Array
    logprobs_BW: jax.Array
    best_ids: jax.Array
    best_logprobs: jax.Array
    routes_LBWK: jax.Array | None = None


def laid(state: State) -> State:
    """Keys and values spread as rows are, the rest the same everywhere: so every program's state is the next one's."""
    return jax.tree.map(whole, state._replace(cache=None))._replace(cache=state.cache.laid())


def laid_shaping(shaping: Shaping) -> Shaping:
    """What has a column for every token spread as logits are, the rest the same everywhere."""
    laid = jax.tree.map(whole, shaping._replace(seen_BV=None, counts_BV=None))
    table = lambda x_BV: shard(x_BV, "batch", "act_vocab")
    return laid._replace(seen_BV=table(shaping.seen_BV), counts_BV=table(shaping.counts_BV))


def committed(params: Params) -> jax.Array | None:
    """Any parameter that is committed to one device; None where none is, and on a mesh: programs lay theirs there.

    Given to a program that makes state of nothing, it commits that state to the device. So is all that programs make of
    both, and for arguments that are not they would compile anew.
    """
    some = next((value for value in params.values() if value.committed), None)
    return None if some is None or len(some.devices()) > 1 else some
