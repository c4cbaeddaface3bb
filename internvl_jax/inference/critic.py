"""A critic of solutions: a model that says of every step of a response whether it is right (VisualPRM).

A response and the question make one row (`data.critique`); a step's score is the probability of "+" against "-" where
the critic would write one of them. All steps of a response are scored in one pass, all responses to a question in one
batch, and the pictures pass the tower once for all of them.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from internvl_jax import sharding
from internvl_jax.data import Messages, Processor, critic_turns, sign_ids, sign_positions, split_steps
from internvl_jax.errors import InputError
from internvl_jax.inference.engine.buckets import Ladders, fit, rising_sizes
from internvl_jax.inference.engine.requests import pad
from internvl_jax.models import InternVL, over_logits
from internvl_jax.sharding import Params, bind, flatten

_LENGTHS = rising_sizes(64, 1 << 17, 4)  # tokens of a row
_STEPS = tuple(4**power for power in range(1, 9))  # steps of a row
_TOKENS = 1 << 16  # of all rows of a pass, about
_CHUNK = 64  # steps whose logits are in memory at a time

StepScores = tuple[float, ...]


class Critic:
    """A critic, ready for many questions; programs are compiled for a few sizes, and stay.

    Args:
      model, processor: as `load` gives them.

    Raises:
      InputError: a model that isn't a critic, or that has another one's tokenizer.
    """

    def __init__(self, model: InternVL, processor: Processor):
        check_critic(processor)
        vocab, size = model.config.text.vocab, processor.tokenizer.vocab_size
        if size > vocab:
            raise InputError(
                f"the critic has rows for {vocab} tokens, its tokenizer {size}; give its own tokenizer files"
            )
        self._processor, self._signs = processor, np.array(sign_ids(processor.tokenizer))
        self._params, self._place = flatten(model), model.runtime.placement
        graphdef, _ = nnx.split(model, nnx.Param)
        self._encode = jax.jit(lambda params, tiles_GHWC: bind(graphdef, params).encode(tiles_GHWC))

        def score(params: Params, encoded: Any, tile_mask_G: jax.Array, rows_2BT: jax.Array, at_BI: jax.Array) -> Any:
            model, (tokens_BT, segments_BT) = bind(graphdef, params), rows_2BT
            B, T = tokens_BT.shape
            positions_BT = jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32)[None], (B, T))
            # Every row has all tiles, in a block of its own.
            shown = jax.tree.map(lambda x: jnp.tile(x, (B, *(1,) * (x.ndim - 1))), (encoded, tile_mask_G))
            hidden_BTD = model.read(shown[0], tokens_BT, shown[1], segments_BT, positions_BT).hidden_BTD
            hidden_BID = jnp.take_along_axis(hidden_BTD, at_BI[:, :, None], axis=1)
            right = lambda logits: jax.nn.softmax(logits[..., self._signs])[..., 0]
            return sharding.whole(over_logits(right, [(hidden_BID, model.lm.head_VD)], [], _CHUNK))

        self._score = jax.jit(score)

    def score(self, messages: Messages, responses: Sequence[str], most: int | None = None) -> list[StepScores]:
        """The scores of every response's steps, between 0 and 1, in their order.

        Args:
          messages: the question, as it was put to the model that answered; its system text doesn't count.
          responses: with their thinking, each paragraph of which is a step.
          most: see `split_steps`.

        Raises:
          InputError: bad messages, or a conversation of several questions; a response that is too long.
        """
        shown = self._processor.show(messages)
        asked = [turn for turn in shown.turns if turn.role != "system"]
        if len(asked) > 1:
            raise InputError(
                f"a critic judges the answer to one question, and the conversation has {len(asked)} turns; ask it alone"
            )
        steps = {response: split_steps(response, most) for response in responses}
        rows = {}
        for response, own in steps.items():
            tokens_T = self._processor.encode(shown, critic_turns(asked[0].parts, own)).tokens_T
            rows[response] = tokens_T, sign_positions(tokens_T, self._processor.template, self._processor.tokenizer)
            if len(rows[response][1]) != len(own):
                raise InputError(
                    "the critic's tokenizer writes its signs together with what stands around them; give a critic "
                    "with its own tokenizer files"
                )
        found = dict(zip(rows, self._run(list(rows.values()), shown.tiles_GHWC), strict=True))
        return [found[response] for response in responses]

    def _run(self, rows: Sequence[tuple[np.ndarray, np.ndarray]], tiles_GHWC: np.ndarray) -> list[StepScores]:
        """Scores of rows of (tokens, positions), all about the same tiles."""
        with sharding.placed(self._place):
            shards = sharding.spread("batch")
            ladders = Ladders().divisible(shards, sharding.spread("tiles"))
            G = fit("image tiles", len(tiles_GHWC), ladders.tiles) if len(tiles_GHWC) else 0
            mask_G = np.arange(G) < len(tiles_GHWC)
            encoded = self._encode(self._params, pad(tiles_GHWC, G)) if G else None
            T = fit("tokens of a question and a response", max(len(tokens_T) for tokens_T, _ in rows), _LENGTHS)
            most = min(max(1, _TOKENS // T // shards) * shards, ladders.rows[-1])
            found: list[StepScores] = []
            for start in range(0, len(rows), most):
                part = rows[start : start + most]
                B = min(most, fit("responses", len(part), ladders.rows))
                arrays = _stack(part, B, T)
                scores_BI = np.asarray(self._score(self._params, encoded, mask_G, *arrays))
                found += [tuple(scores_BI[b, : len(at_I)].tolist()) for b, (_, at_I) in enumerate(part)]
        return found


def check_critic(processor: Processor) -> None:
    """Whether this is a critic's, from files alone.

    Raises:
      InputError: it isn't.
    """
    if processor.system is None:
        raise InputError(
            "the model given as critic is none: it has no system text that tells it to judge steps; give a VisualPRM, "
            "or set processor.system in the config.json of a critic that was trained here"
        )
    sign_ids(processor.tokenizer)


def _stack(rows: Sequence[tuple[np.ndarray, np.ndarray]], B: int, T: int) -> tuple[np.ndarray, np.ndarray]:
    """int32 `[2, B, T]`, tokens and segments, and the positions of signs `[B, I]`; rows beyond those given are copies
    of the first, so that each has its picture's tokens.
    """
    most = fit("steps", max(len(at_I) for _, at_I in rows), _STEPS)
    rows_2BT, at_BI = np.zeros((2, B, T), np.int32), np.zeros((B, most), np.int32)
    for b, (tokens_T, at_I) in enumerate([*rows, *[rows[0]] * (B - len(rows))]):
        rows_2BT[0, b, : len(tokens_T)], rows_2BT[1, b, : len(tokens_T)] = tokens_T, 1
        at_BI[b, : len(at_I)] = at_I
    return rows_2BT, at_BI
