"""Rollouts: groups of answers to prompts, sampled from a policy's present parameters, with their log-probabilities.

The engine's programs write them on rows that are kept in groups (`group_seats.py`), by `GroupRunner`:

1. Prompts that there is a place for are read, a few together, and the first tokens of all their answers are drawn.
2. A loop on the device writes all rows. It stops where rows can be used better: others wait for those that are free,
   or the answers that are left fit into fewer.

A row's draws depend on its own seed and length only: neither on its neighbours nor on when it began.

Answers may be left unfinished, and go on in another call with the parameters of that time: what they have written is
read again.
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from internvl_jax import sharding
from internvl_jax.errors import InputError
from internvl_jax.inference.engine.buckets import Ladders
from internvl_jax.inference.engine.group_runner import GroupRunner, Text
from internvl_jax.inference.engine.memory import PIECE
from internvl_jax.inference.engine.programs import Programs
from internvl_jax.inference.engine.requests import Request, Vocabulary, check
from internvl_jax.inference.engine.sampling_params import SamplingParams
from internvl_jax.inference.engine.tile_features import TileFeatures
from internvl_jax.models import PARTS, InternVLConfig, Runtime, unstack, unstack_params
from internvl_jax.sharding import Params, Rules

_TILE_BYTES = 1 << 30  # of features of tiles, kept for other prompts that show the same
_REFUSED = (
    *("repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias"),
    *("min_tokens", "logprobs", "stop_strings"),
)
_PLAIN = SamplingParams()
_OWN = {"allow": None, "adapter": None, "seeds": (), "priority": 0}  # what only the engine can do for a request


class Rollout(NamedTuple):
    """An answer.

    Attributes:
      tokens: int32 [n], the stop token included.
      logprobs: float32 [n], each token's log-probability under the policy itself that drew it: at temperature 1 and
        normalised over its whole table, tokens that can't be drawn included, as `token_logprobs` computes them in
        training.
      finished: False where the answer was cut at its `max_new_tokens`, or has not ended yet.
      routes: int16 [T + n - 1, L, K], the experts that every layer chose for the tokens of prompt and answer, when they
        were read last; the last token was not looked at. None unless the sampler notes them.
    """

    tokens: np.ndarray
    logprobs: np.ndarray
    finished: bool
    routes: np.ndarray | None


class SampledGroups:
    """Groups of answers that are being written, see `Sampler.begin`. Not more than one of a sampler at a time.

    Attributes:
      busy: whether any answer goes on.
    """

    def __init__(
        self,
        runner: GroupRunner,
        kept: Sequence[Sequence[Rollout]],
        piece: int,
        stepping: Callable[[], contextlib.AbstractContextManager[None]],
    ):
        self._runner, self._kept, self._piece, self._stepping = runner, kept, piece, stepping
        for prompt, answers in enumerate(kept):
            if answers:
                runner.keep(prompt, [answer[:3] for answer in answers])
        self._open = set(range(len(kept)))
        self.busy = True

    def step(self) -> list[int]:
        """Goes on with all answers for a while; returns the prompts all of whose answers have ended since."""
        runner = self._runner
        with self._stepping():
            self.busy = runner.arrange()
            if self.busy:
                runner.write(self._piece)
                runner.tell()
        ended = [prompt for prompt in sorted(self._open) if not runner.left[prompt]]
        self._open -= set(ended)
        return ended

    def answers(self, prompt: int) -> list[Rollout]:
        """The answers to a prompt, as far as they are written; none of a prompt that was not read yet."""
        runner, kept = self._runner, self._kept[prompt]
        group = runner.groups.group
        numbers = range(prompt * group, (prompt + 1) * group)
        if not runner.texts[numbers[0]].count:
            return []
        known = [bool(kept) and runner.texts[answer].count == runner.texts[answer].kept for answer in numbers]
        return [kept[a] if known[a] else _rollout(runner.texts[answer]) for a, answer in enumerate(numbers)]


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
        piece: int = PIECE,
        routes: bool = False,
    ):
        if routes and config.text.moe is None:
            raise InputError("this model has no experts, so there are no routes to note; leave routes out")
        if vocabulary.size > config.text.vocab:
            raise InputError(
                f"the tokenizer has {vocabulary.size} tokens, the model's table only {config.text.vocab}; "
                "use the tokenizer files of this model"
            )
        self._config, self.vocabulary, self._piece = config, vocabulary, piece
        on_cpu = (jax.default_backend() if mesh is None else mesh.devices.flat[0].platform) == "cpu"
        self._apart = on_cpu and (mesh is None or mesh.size == 1)
        self._mesh, self._rules = (None, None) if self._apart else (mesh, rules)
        model = nnx.eval_shape(lambda: PARTS["all"](config, nnx.Rngs(0), Runtime(dtype)))
        graphdef = nnx.split(model, nnx.Param)[0]
        written = unstack(model) if self._apart else graphdef
        # As in `Runner`: XLA on CPU converts a whole bfloat16 cache at every write.
        cache_dtype = jnp.float32 if on_cpu else dtype
        size, banned = vocabulary.size, vocabulary.banned
        per_tile = config.tokens_per_tile * config.text.width * jnp.dtype(dtype).itemsize
        capacity = max(1, _TILE_BYTES // per_tile)
        with sharding.use(self._mesh, self._rules):
            self._shards, tiles = sharding.spread("batch"), sharding.spread("tiles")
            self.ladders = (ladders or Ladders()).divisible(self._shards, tiles)
            self._programs = Programs(config, graphdef, written, size, banned, cache_dtype, piece, routes)
            self._vision = TileFeatures(config, dtype, self._programs, self.ladders.tiles, capacity)

    @property
    def num_compiled(self) -> int:
        """Programs compiled so far."""
        return self._programs.num_compiled

    def sample(
        self,
        params: Params,
        requests: Sequence[Request],
        group: int,
        seeds: int | np.ndarray,
        prompts: int | None = None,
    ) -> list[list[Rollout]]:
        """`group` answers to every request, see `begin`.

        No reference to the parameters is left behind: a training step may take their memory.
        """
        groups = self.begin(params, requests, group, seeds, prompts)
        while groups.busy:
            groups.step()
        return [groups.answers(prompt) for prompt in range(len(requests))]

    def begin(
        self,
        params: Params,
        requests: Sequence[Request],
        group: int,
        seeds: int | np.ndarray,
        prompts: int | None = None,
        kept: Sequence[Sequence[Rollout]] | None = None,
    ) -> SampledGroups:
        """Begins `group` answers to every request; step by step they are written, and may be left unfinished.

        Args:
          params: the policy's parameters as training holds them.
          requests: the prompts; all processes of a run give the same and get the same. The seed of their `sampling` is
            not read. A policy gradient needs samples of the policy itself: temperature 1, no top-k, no top-p.
          seeds: uint32 [requests, group], the seed of every answer's random stream; or one number, from which these are
            made.
          prompts: there is memory for so many prompts with all their answers, and further ones wait; fewer use the same
            programs. By default all requests, or as many as the ladder has.
          kept: for every request the answers that `SampledGroups.answers` gave in another call, which go on where they
            are not complete; none to begin anew.

        Raises:
          InputError: see `requests.check`; sizes beyond the ladders, a repetition penalty or stop strings, a mask, an
            adapter, seeds or a priority of a request.
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
        with sharding.use(self._mesh, self._rules):
            runner = self._run(params, requests, seeds, prompts)
        return SampledGroups(runner, kept or [()] * len(requests), self._piece, self._stepping)

    def warm_up(self, params: Params, requests: Sequence[Request], group: int, prompts: int | None = None) -> int:
        """Compiles all that such requests need, however their answers end; returns how many programs there are."""
        with sharding.use(self._mesh, self._rules):
            self._run(params, requests, np.zeros((len(requests), group), np.uint32), prompts).warm_up()
        return self.num_compiled

    def _stepping(self) -> contextlib.AbstractContextManager[None]:
        """What a step of groups runs in."""
        return sharding.use(self._mesh, self._rules)

    def _run(
        self, params: Params, requests: Sequence[Request], seeds_QA: np.ndarray, prompts: int | None
    ) -> GroupRunner:
        for i, request in enumerate(requests):
            _check_plain(i, request)
            check(request, self._config, self.vocabulary)
            if request.features is not None:
                raise InputError(f"request {i} has features of its tiles, but groups of answers need tiles; give them")
        self._vision.clear()
        together = min(prompts or len(requests), self.ladders.rows[-1])
        return GroupRunner(
            self._programs,
            self._vision,
            (params, unstack_params if self._apart else None),
            (self._config, self.vocabulary),
            self.ladders,
            requests,
            seeds_QA,
            (together, self._shards),
        )


def _rollout(text: Text) -> Rollout:
    routes = np.concatenate(text.routes, axis=1).swapaxes(0, 1) if text.routes else None
    return Rollout(np.concatenate(text.tokens), np.concatenate(text.logprobs), text.finished, routes)


def _check_plain(i: int, request: Request) -> None:
    for name in _REFUSED:
        if (value := getattr(request.sampling, name)) != getattr(_PLAIN, name):
            raise InputError(
                f"request {i} has {name} {value!r}, which groups of answers can't be drawn with; "
                f"leave it at {getattr(_PLAIN, name)!r}"
            )
    for name, plain in _OWN.items():
        if getattr(request, name) != plain:
            raise InputError(f"request {i} has {name}, which groups of answers can't be drawn with; leave it out")
