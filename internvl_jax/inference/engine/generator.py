"""Answers to batches of prompts.

1. Tiles of all rows are encoded together, equal ones once; every row gathers the features of its own. Where a Flash
   model compresses tiles, prompts grow shorter by their tokens: the host decides, before prompts are padded.
2. Prompts are padded to a common length, run through the model whole, and their keys and values go into a fresh cache.
3. One program call a token for all rows. The host reads tokens one step behind, so the device never waits for it.

All sizes come from `Ladders`: after `warm_up` nothing compiles.
"""

import itertools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from internvl_jax.errors import InputError
from internvl_jax.inference.engine.buckets import Ladders, fit
from internvl_jax.inference.engine.programs import Features, Programs, State
from internvl_jax.inference.engine.requests import STOPS, Request, Seen, Sight, Vocabulary, check_plain, pad, stop_ids
from internvl_jax.inference.engine.sampling import stack_params
from internvl_jax.inference.engine.sampling_params import SamplingParams
from internvl_jax.models import InternVL, unstack, unstack_params
from internvl_jax.sharding import Params, flatten

_REFUSED = "presence_penalty", "frequency_penalty", "logit_bias", "min_tokens", "logprobs"


class Generator:
    """A model, ready to answer.

    Args:
      model: the model; its parameters may lie on several devices.
      vocabulary: see `Vocabulary`.
      ladders: the sizes that programs are compiled for.
      apart: decode with every layer's parameters apart (see `unstack`); by default on a single CPU device.
    """

    def __init__(
        self, model: InternVL, vocabulary: Vocabulary, ladders: Ladders | None = None, apart: bool | None = None
    ):
        self.config, self.vocabulary, self.ladders = model.config, vocabulary, ladders or Ladders()
        if vocabulary.size > self.config.text.vocab:
            raise InputError(
                f"the tokenizer has {vocabulary.size} tokens, the model's table only {self.config.text.vocab}; "
                "use the tokenizer files of this model"
            )
        params = flatten(model)
        devices = {device for leaf in params.values() for device in leaf.devices()}
        on_cpu = all(device.platform == "cpu" for device in devices)
        self._apart = (on_cpu and len(devices) == 1) if apart is None else apart
        self.params = params
        graphdef = nnx.split(model, nnx.Param)[0]
        dtype = model.runtime.dtype
        self.programs = Programs(
            graphdef,
            unstack(model) if self._apart else graphdef,
            self.config.text.vocab,
            vocabulary.size,
            vocabulary.banned,
            # XLA on CPU converts a whole bfloat16 cache at every write (2026-11, jax 0.10.2).
            jnp.float32 if on_cpu else dtype,
        )
        self.sight = Sight(self.config, dtype, self.programs, self.ladders.tiles)

    @property
    def params(self) -> Params:
        """The model's parameters; others of the same shapes (a training's newer ones) may take their place."""
        return self._params

    @params.setter
    def params(self, params: Params) -> None:
        self._params = params
        self._decode_params = unstack_params(params) if self._apart else params

    def encode(self, tiles_GHWC: np.ndarray) -> Features:
        """Features of tiles; see `Sight.encode`."""
        return self.sight.encode(self.params, tiles_GHWC)

    def look(self, requests: Sequence[Request]) -> Seen:
        """Encodes the tiles of requests and decides which of them are compressed; see `Sight.look`."""
        return self.sight.look(self.params, requests)

    def prefill(self, requests: Sequence[Request], rows: int = 1, seen: Seen | None = None) -> tuple[State, jax.Array]:
        """Runs the prompts.

        Args:
          requests: what is asked, one request or more.
          rows: the least number to compute, so that a last, smaller batch uses the programs of the others.
          seen: what `look` returned for these requests.

        Returns:
          the state for `decode`, and the first token of every answer, [B].

        Raises:
          InputError: see `look`; sizes that exceed the ladders, or parameters in `_REFUSED`.
        """
        for i, request in enumerate(requests):
            check_plain(i, request.sampling, _REFUSED, "a generator doesn't do")
        B = fit("rows", max(rows, len(requests)), self.ladders.rows)
        seen = self.look(requests) if seen is None else seen
        sampling = [request.sampling for request in requests]
        padded = sampling + [SamplingParams()] * (B - len(sampling))
        lengths = [len(tokens_T) for tokens_T in seen.tokens]
        T = fit("prompt tokens", max(lengths), self.ladders.prompts)
        longest = max(length + row.max_new_tokens for length, row in zip(lengths, sampling, strict=True))
        S = fit("tokens of prompt and answer", max(T, longest), self.ladders.slots)

        tokens_BT = pad(np.stack([pad(tokens_T, T) for tokens_T in seen.tokens]), B)
        index_BP = pad(np.stack([pad(index_P, self.sight.image_slots(T)) for index_P in seen.features]), B)
        stops_BZ = np.stack([stop_ids(i, self.vocabulary, row) for i, row in enumerate(sampling)])
        lengths_B = pad(np.array(lengths, np.int32), B)

        features_BPD = self.programs.gather(seen.pool_GPD, index_BP)
        logits_BV, kv = self.programs.prefill(self.params, tokens_BT, lengths_B, features_BPD)
        kv = list(kv)
        state = self.programs.start(
            tokens_BT,
            lengths_B,
            pad(np.array([row.max_new_tokens for row in sampling], np.int32), B),
            pad(stops_BZ, B),
            np.array([row.repetition_penalty for row in padded], np.float32),
            stack_params(padded),
            slots=S,
        )
        return self.programs.first(self._with_cache(state, kv, S), logits_BV)

    def decode(self, state: State) -> tuple[State, jax.Array]:
        """One token more; the given state is used up.

        Returns:
          the state, and the token of every row, -1 where the answer was complete before.
        """
        return self.programs.decode(self._decode_params, state)

    def stream(self, requests: Sequence[Request], rows: int = 1, seen: Seen | None = None) -> Iterator[np.ndarray]:
        """Tokens of all answers, step by step: [B], -1 where an answer is complete. Stop tokens are included.

        Ends when all are complete; the caller may stop earlier (for stop strings, which tokens don't show).
        """
        state, tokens_B = self.prefill(requests, rows, seen)
        limits = np.array([request.sampling.max_new_tokens for request in requests])
        stops_BZ = np.stack([stop_ids(i, self.vocabulary, request.sampling) for i, request in enumerate(requests)])
        done = np.zeros(len(requests), bool)
        for step in itertools.count(1):
            # The next step runs while this one's tokens are read.
            last = bool(np.all(done | (step >= limits)))
            following = None if last else self.decode(state)
            shown = np.asarray(tokens_B)[: len(requests)]
            yield shown
            done |= (shown[:, None] == stops_BZ).any(axis=1)
            if last or done.all():
                return
            state, tokens_B = following

    def generate(self, requests: Sequence[Request], rows: int = 1, seen: Seen | None = None) -> list[list[int]]:
        """Tokens of every answer, its stop token included; see `stream`."""
        steps = np.stack(list(self.stream(requests, rows, seen)), axis=1)
        return [[int(token) for token in row if token >= 0] for row in steps]

    def warm_up(self, rows: Sequence[int], prompts: Sequence[int], tiles: Sequence[int], slots: Sequence[int]) -> int:
        """Compiles all programs that requests of these sizes need; returns how many programs there are.

        Args:
          rows, prompts, tiles, slots: sizes, which are rounded up to those of the ladders; empty tiles: text only.
        """
        sizes = {
            name: sorted({fit(name, size, getattr(self.ladders, name)) for size in given})
            for name, given in (("rows", rows), ("prompts", prompts), ("tiles", tiles), ("slots", slots))
        }
        side = self.config.vision.image_size
        pools = [self.encode(np.zeros((G, side, side, 3), np.uint8)).pool_GPD for G in (0, *sizes["tiles"])]
        for B in sizes["rows"]:
            limits_B, stops_BZ = np.ones(B, np.int32), np.full((B, STOPS), -1, np.int32)
            lengths_B, sampling = np.ones(B, np.int32), stack_params([SamplingParams()] * B)
            states = {}
            for T in sizes["prompts"]:
                index_BP = np.zeros((B, self.sight.image_slots(T)), np.int32)
                rows_BPD = [self.programs.gather(pool_GPD, index_BP) for pool_GPD in pools]
                tokens_BT = np.zeros((B, T), np.int32)
                logits_BV, kv = self.programs.prefill(self.params, tokens_BT, lengths_B, rows_BPD[0])
                for S in (S for S in sizes["slots"] if S >= T):
                    start = self.programs.start(
                        tokens_BT, lengths_B, limits_B, stops_BZ, np.ones(B, np.float32), sampling, slots=S
                    )
                    states[S] = self._with_cache(start, list(kv), S)
            for state in states.values():
                self.decode(self.programs.first(state, logits_BV)[0])
        return self.programs.num_compiled

    def _with_cache(self, state: State, kv: list[jax.Array], slots: int) -> State:
        """The state with keys and values of the prompts, which are used up one after the other: never both twice."""
        k = jax.block_until_ready(self.programs.store(kv.pop(0), slots=slots))
        return state._replace(cache=state.cache._replace(k=k, v=self.programs.store(kv.pop(0), slots=slots)))
