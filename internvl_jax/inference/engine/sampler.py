"""Rollouts: groups of answers to prompts, sampled from a policy's present parameters, with their log-probabilities.

1. Tiles are encoded once and prompts run once; the answers of a group share the keys and values of their prompt.
2. All answers are written by one loop on the device. It stops where rows can be saved: once half of them are complete,
   the others go on as a smaller batch, down to the smallest that the ladder has.

A row's draws depend on its own seed and length only: neither on its neighbours nor on when the batch shrinks.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from internvl_jax import sharding
from internvl_jax.errors import InputError
from internvl_jax.inference.engine.buckets import Ladders, fit
from internvl_jax.inference.engine.memory import FIRST_SLOTS
from internvl_jax.inference.engine.programs import Programs
from internvl_jax.inference.engine.requests import Request, Seen, Vocabulary, check, pad, shown, stop_ids
from internvl_jax.inference.engine.sampler_programs import Given, RolloutPrograms, Rows
from internvl_jax.inference.engine.sampling import stack_params
from internvl_jax.inference.engine.sampling_params import SamplingParams
from internvl_jax.inference.engine.tile_features import TileFeatures, digest
from internvl_jax.models import InternVL, InternVLConfig, Runtime, unstack, unstack_params
from internvl_jax.sharding import Params, Rules

# The most tokens that a call of the loop writes, so that the host sees in time how many answers are left.
_PIECE = 256
_REFUSED = (
    *("repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias"),
    *("min_tokens", "logprobs", "stop_strings"),
)


class Rollout(NamedTuple):
    """An answer.

    Attributes:
      tokens: int32 [n], the stop token included.
      logprobs: float32 [n], each token's log-probability under the policy itself: at temperature 1 and normalised over
        its whole table, tokens that can't be drawn included, as `token_logprobs` computes them in training.
      finished: False where the answer was cut at its `max_new_tokens`.
      routes: int16 [T + n - 1, L, K], the experts that every layer chose for the tokens of prompt and answer; the last
        one was not looked at. None unless the sampler notes them.
    """

    tokens: np.ndarray
    logprobs: np.ndarray
    finished: bool
    routes: np.ndarray | None


class _Layout(NamedTuple):
    """Rows as `branches` copies of prompts with `width` answers each."""

    branches: int
    width: int

    @property
    def rows(self) -> int:
        return self.branches * self.width


class Sampler:
    """Samples from a policy whose parameters change.

    Args:
      config: the model's config.
      dtype: the dtype of activations, the same as in training.
      vocabulary: see `Vocabulary`.
      ladders: the sizes that programs are compiled for; `rows` are prompts, `slots` the longest answer's tokens.
      mesh, rules: where the parameters lie; rows are spread over the rules' batch axes.
      piece: the most tokens that the loop on the device writes before it returns.
      routes: whether to note the experts of every token, for a trainer that replays them.
    """

    def __init__(
        self,
        config: InternVLConfig,
        dtype: jnp.dtype,
        vocabulary: Vocabulary,
        ladders: Ladders | None = None,
        mesh: Mesh | None = None,
        rules: Rules | None = None,
        piece: int = _PIECE,
        routes: bool = False,
    ):
        if routes and config.text.moe is None:
            raise InputError("this model has no experts, so there are no routes to note; leave routes out")
        if vocabulary.size > config.text.vocab:
            raise InputError(
                f"the tokenizer has {vocabulary.size} tokens, the model's table only {config.text.vocab}; "
                "use the tokenizer files of this model"
            )
        self.vocabulary, self.ladders, self._piece = vocabulary, ladders or Ladders(), piece
        on_cpu = (jax.default_backend() if mesh is None else mesh.devices.flat[0].platform) == "cpu"
        self._apart = on_cpu and (mesh is None or mesh.size == 1)
        self._mesh, self._rules = (None, None) if self._apart else (mesh, rules)
        model = nnx.eval_shape(lambda: InternVL(config, nnx.Rngs(0), Runtime(dtype)))
        graphdef = nnx.split(model, nnx.Param)[0]
        written = unstack(model) if self._apart else graphdef
        # As in `Generator`: XLA on CPU converts a whole bfloat16 cache at every write.
        cache_dtype = jnp.float32 if on_cpu else dtype
        size, banned = vocabulary.size, vocabulary.banned
        self._prompts = Programs(config, graphdef, graphdef, size, banned, cache_dtype, piece)
        self._answers = RolloutPrograms(self._prompts, written, self._apart, size, banned, cache_dtype, routes)
        self._sizes = self._divisible("rows", () if rules is None else rules.batch)
        tiles = self._divisible("tiles", () if rules is None else rules.tiles)
        self._config, self._vision = config, TileFeatures(config, dtype, self._prompts, tiles, 1 << 30)

    @property
    def num_compiled(self) -> int:
        """Programs compiled so far."""
        return self._prompts.num_compiled + self._answers.num_compiled

    def sample(
        self, params: Params, requests: Sequence[Request], group: int, seeds: int | np.ndarray, prompts: int = 1
    ) -> list[list[Rollout]]:
        """`group` answers to every request.

        No reference to the parameters is left behind: a training step may take their memory.

        Args:
          params: the policy's parameters as training holds them.
          requests: the prompts; all processes of a run give the same and get the same. The seed of their `sampling` is
            not read. A policy gradient needs samples of the policy itself: temperature 1, no top-k, no top-p.
          seeds: uint32 [requests, group], the seed of every answer's random stream; or one number, from which these are
            made.
          prompts: the least number to compute, so that a last, smaller batch uses the programs of the others.

        Raises:
          InputError: see `requests.check`; sizes beyond the ladders, a repetition penalty or stop strings.
        """
        if np.ndim(seeds) == 0:
            drawn = np.random.SeedSequence(int(seeds)).generate_state(len(requests) * group)
            seeds = drawn.reshape(len(requests), group)
        seeds = np.asarray(seeds, np.uint32)
        if seeds.shape != (len(requests), group) or not seeds.size:
            raise InputError(
                f"seeds have the shape {seeds.shape}, the rollout {len(requests)} requests in groups of {group}; "
                "give one for every answer, and at least one answer"
            )
        found: dict[int, Rollout] = {}
        with sharding.use(self._mesh, self._rules):
            for responses in self._pieces(params, requests, seeds, prompts):
                found |= responses
        return [[found[p * group + g] for g in range(group)] for p in range(len(requests))]

    def warm_up(self, params: Params, requests: Sequence[Request], group: int) -> int:
        """Compiles all that such requests need, however their answers end; returns how many programs there are."""
        with sharding.use(self._mesh, self._rules):
            rows, layout, _, _ = self._begin(params, requests, np.zeros((len(requests), group), np.uint32), 1)
            params = unstack_params(params) if self._apart else params
            longest = max(request.sampling.max_new_tokens for request in requests)
            every = [rows]  # of every number of slots
            while (slots := self._more(every[-1], longest)) is not None:
                every.append(self._answers.grow(every[-1], slots=slots))
            while True:
                every = [self._answers.write(params, rows, np.int32(0), np.int32(0)) for rows in every]
                for rows in every[:-1]:
                    self._answers.grow(rows, slots=self._more(rows, longest))
                if (layout := self._smaller(layout)) is None:
                    return self.num_compiled
                nothing_B = np.zeros(layout.rows, np.int32)
                nobody = nothing_B[: layout.branches], nothing_B, nothing_B > 0
                every = [self._answers.compact(rows, *nobody) for rows in every]

    def _pieces(
        self, params: Params, requests: Sequence[Request], seeds_QA: np.ndarray, prompts: int
    ) -> Iterator[dict[int, Rollout]]:
        """Answers by their number, as they are complete."""
        group, longest = seeds_QA.shape[1], max(request.sampling.max_new_tokens for request in requests)
        rows, layout, answer_B, before = self._begin(params, requests, seeds_QA, prompts)
        params = unstack_params(params) if self._apart else params
        while True:
            left_B = (answer_B >= 0) & ~np.asarray(rows.done_B)
            yield self._complete(rows, np.where(left_B, -1, answer_B), requests, group, before)
            if not left_B.any():
                return
            answer_B = np.where(left_B, answer_B, -1)
            while (smaller := self._smaller(layout)) is not None:
                left = np.flatnonzero(answer_B >= 0)
                if (packed := _pack(left, answer_B[left] // group, smaller)) is None:
                    break
                row_B, real_B = packed
                branch_numbers = row_B[:: smaller.width] // layout.width
                rows = self._answers.compact(rows, branch_numbers, row_B, real_B)
                layout, answer_B = smaller, np.where(real_B, answer_B[row_B], -1)
            # Back here as soon as those that are left may fit; if their prompts were too many, once half are complete.
            few = 0 if smaller is None else min(smaller.rows, len(left) // 2)
            if int(rows.count) == rows.tokens_BS.shape[1]:
                rows = self._answers.grow(rows, slots=self._more(rows, longest))
            stop = min(int(rows.count) + self._piece, rows.tokens_BS.shape[1], longest)
            rows = self._answers.write(params, rows, np.int32(stop), np.int32(few))

    def _begin(
        self, params: Params, requests: Sequence[Request], seeds_QA: np.ndarray, prompts: int
    ) -> tuple[Rows, _Layout, np.ndarray, list[np.ndarray] | None]:
        """Runs the prompts.

        Returns:
          rows with their first tokens, their layout, the number of every row's answer (-1 if it has none), and the
          routes of every prompt, [L, T, K], if they are noted.
        """
        sampling = [request.sampling for request in requests]
        for i, row in enumerate(sampling):
            _check_plain(i, row)
        prompts_seen = self._look(params, requests)
        lengths = [len(prompt.tokens_T) for prompt, _ in prompts_seen]
        prompts = max(prompts, len(requests))
        Q = fit("prompts", prompts, self._sizes)
        T = fit("prompt tokens", max(lengths), self.ladders.prompts)
        longest = fit("tokens of an answer", max(row.max_new_tokens for row in sampling), self.ladders.slots)
        tokens_QT = pad(np.stack([pad(prompt.tokens_T, T) for prompt, _ in prompts_seen]), Q)
        index_QP = pad(np.stack([pad(index_P, T) for _, index_P in prompts_seen]), Q)
        lengths_Q = pad(np.array(lengths, np.int32), Q)
        features_QPD = self._prompts.gather(self._vision.pool_GPD, index_QP)
        logits_QV, kv, routes_LQTK = self._answers.prefill(params, tokens_QT, lengths_Q, features_QPD)

        group = seeds_QA.shape[1]
        layout = self._layout(prompts, group)
        answers = np.arange(seeds_QA.size)
        row_B, real_B = _pack(answers, answers // group, layout)
        prompt_B = row_B // group
        drawn = jax.tree.map(lambda each: each[prompt_B], stack_params(sampling))
        given = Given(
            np.where(real_B, np.array([row.max_new_tokens for row in sampling], np.int32)[prompt_B], 0),
            np.stack([stop_ids(self.vocabulary, row) for row in sampling])[prompt_B],
            drawn._replace(seed_B=seeds_QA.reshape(-1)[row_B]),
        )
        branch_prompts = prompt_B[:: layout.width]
        rows = self._answers.start(
            logits_QV, kv, routes_LQTK, lengths_Q, branch_prompts, given, slots=min(longest, FIRST_SLOTS)
        )
        before = None
        if routes_LQTK is not None:
            routes_QLTK = np.asarray(routes_LQTK).swapaxes(0, 1)
            before = [routes_QLTK[p, :, :length] for p, length in enumerate(lengths)]
        return rows, layout, np.where(real_B, row_B, -1), before

    def _look(self, params: Params, requests: Sequence[Request]) -> list[tuple[Seen, np.ndarray]]:
        """Prompts, and where the features of their image tokens lie in the pool."""
        self._vision.clear()
        found = []
        for request in requests:
            check(request, self._config, self.vocabulary)
        names = [[digest(tile_HWC) for tile_HWC in request.tiles_GHWC] for request in requests]
        tiles = {
            name: tile
            for own, r in zip(names, requests, strict=True)
            for name, tile in zip(own, r.tiles_GHWC, strict=True)
        }
        self._vision.encode(params, tiles)
        for own, request in zip(names, requests, strict=True):
            probability_G = None if self._config.flash is None else self._vision.probabilities(own)
            prompt = shown(request, own, probability_G, self._config)
            found.append((prompt, self._vision.index(own, prompt.sources_T)))
        return found

    def _complete(
        self,
        rows: Rows,
        answer_B: np.ndarray,
        requests: Sequence[Request],
        group: int,
        before: list[np.ndarray] | None,
    ) -> dict[int, Rollout]:
        """The answers of rows with a number."""
        if (answer_B < 0).all():
            return {}
        written = rows.counts_B, rows.tokens_BS, rows.logprobs_BS, rows.routes_LBSK
        counts_B, tokens_BS, logprobs_BS, routes_LBSK = jax.device_get(written)
        found = {}
        for b in np.flatnonzero(answer_B >= 0):
            number, n = int(answer_B[b]), counts_B[b]
            tokens, routes = tokens_BS[b, :n].copy(), None
            stops = requests[number // group].sampling.stop_ids(self.vocabulary.stops)
            if before is not None:
                routes_LTK = np.concatenate([before[number // group], routes_LBSK[:, b, : n - 1]], axis=1)
                routes = routes_LTK.swapaxes(0, 1)
            found[number] = Rollout(tokens, logprobs_BS[b, :n].copy(), int(tokens[-1]) in stops, routes)
        return found

    def _divisible(self, dimension: str, axes: tuple[str, ...]) -> tuple[int, ...]:
        """A ladder's sizes, each as much larger as the devices along these axes need to share it."""
        spread = 1 if self._mesh is None else math.prod(self._mesh.shape[axis] for axis in axes)
        return tuple(sorted({-(-size // spread) * spread for size in getattr(self.ladders, dimension)}))

    def _layout(self, prompts: int, group: int) -> _Layout:
        """The fewest rows that hold all answers, with as few copies of prompts as they allow."""
        layouts: list[_Layout] = []
        width = group
        while True:
            copies = prompts * -(-group // width)
            if layouts and (copies > self._sizes[-1] or width == layouts[-1].width):
                return min(layouts, key=lambda layout: (layout.rows, layout.branches))
            layouts.append(_Layout(fit("prompts", copies, self._sizes), width))
            width = -(-width // 2)

    def _more(self, rows: Rows, longest: int) -> int | None:
        """How many slots an answer gets when it has filled those that it has; None: it may not be longer."""
        slots = rows.tokens_BS.shape[1]
        longest = fit("tokens of an answer", longest, self.ladders.slots)
        return None if slots >= longest else min(2 * slots, longest)

    def _smaller(self, layout: _Layout) -> _Layout | None:
        """What rows go on as once there are half as many."""
        if layout.width > 1:
            return _Layout(layout.branches, -(-layout.width // 2))
        fewer = [size for size in self._sizes if size <= (layout.branches + 1) // 2 and size < layout.branches]
        return _Layout(fewer[-1], 1) if fewer else None


def _check_plain(i: int, sampling: SamplingParams) -> None:
    plain = SamplingParams()
    for name in _REFUSED:
        if getattr(sampling, name) != getattr(plain, name):
            raise InputError(
                f"request {i} has {name} {getattr(sampling, name)!r}, which groups of answers can't be drawn with; "
                f"leave it at {getattr(plain, name)!r}"
            )


def _pack(rows: np.ndarray, prompts: np.ndarray, layout: _Layout) -> tuple[np.ndarray, np.ndarray] | None:
    """Rows side by side under branches of their prompts.

    Args:
      rows: the numbers of the rows.
      prompts: the number of every row's prompt.

    Returns:
      for every row of the layout, branch by branch, the number that it takes, and whether it does: a branch's padding
      repeats its first one. None where the layout has too few branches.
    """
    branches = []
    for prompt in dict.fromkeys(prompts.tolist()):
        own = rows[prompts == prompt]
        branches += [own[start : start + layout.width] for start in range(0, len(own), layout.width)]
    if len(branches) > layout.branches:
        return None
    branches += [rows[:0]] * (layout.branches - len(branches))
    filled = [np.append(own, np.repeat(own[:1] if len(own) else rows[:1], layout.width - len(own))) for own in branches]
    real = [np.arange(layout.width) < len(own) for own in branches]
    return np.concatenate(filled).astype(np.int32), np.concatenate(real)
