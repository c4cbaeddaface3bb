"""Responses of the policy, some of which may be left to later rollout batches: partial rollouts.

The longest of thousands of responses takes many times as long as most, and the devices wait for it. With `ahead`, more
prompts are being answered than a rollout batch takes, and sampling stops as soon as it has enough whole groups. What
the others have written stays, with the log-probabilities of the policy that wrote it; in the next batch prompt and
tokens are read again, and the new policy goes on. Short answers come first then, but none is left out: groups that have
ended are taken in the order in which they were begun, and those begun `staleness` batches ago are ended whatever it
takes. (To drop these, and sample them anew, would teach the policy from what ends soon alone.)

All of this is decided by tokens, which all processes have.

Source: partial rollouts of Kimi k1.5 (arXiv 2501.12599) and APRIL (arXiv 2509.18521), the bound on staleness of AReaL
(arXiv 2505.24298).
"""

import jax.numpy as jnp
import numpy as np

from internvl_jax.data import ChatInputs, PromptStream, Skipped, encode_prompt
from internvl_jax.errors import InputError
from internvl_jax.inference import (
    MODEL_THRESHOLDS,
    Request,
    Sampler,
    SamplingParams,
    Thresholds,
    Vocabulary,
)
from internvl_jax.sharding import Params, Placement
from internvl_jax.training.stages.base import SourceParts
from internvl_jax.training.stages.gspo.partial_groups import PartialGroup
from internvl_jax.training.stages.gspo.sampling_weights import prompts_ahead, sampling_ladders
from internvl_jax.training.stages.gspo.settings import GspoConfig

_SEED_STREAM = 4  # keeps the random numbers of responses apart from those of the prompts' order


class PartialRollouts:
    """The prompts that are being answered.

    Args:
      settings, parts: the stage's.
      place: where responses are sampled; None: on one device.
      stream: the prompts in their order.
      skipped: takes in prompts that can't be read.

    Attributes:
      groups: those that were begun and not taken.
      consumed: how many prompts of the stream were begun, or could not be read.
    """

    def __init__(
        self,
        settings: GspoConfig,
        parts: SourceParts,
        place: Placement | None,
        stream: PromptStream,
        skipped: Skipped,
    ):
        self._settings, self._processor, self._stream, self._skipped = settings, parts.processor, stream, skipped
        self._seed = parts.run.seed
        model, (mesh, rules) = parts.program.model, (None, None) if place is None else (place.mesh, place.rules)
        self._sampler = Sampler(
            model,
            jnp.dtype(parts.run.dtype),
            Vocabulary.of(parts.processor),
            sampling_ladders(settings),
            mesh,
            rules,
            routes=settings.routes != "ignore",
        )
        # A Flash model's language is trained at full resolution; its router comes after.
        self._thresholds = MODEL_THRESHOLDS if model.flash is None else Thresholds(relative=1.0)
        self.groups: list[PartialGroup] = []
        self.consumed = 0

    def sample(self, params: Params, wanted: int, batch: int) -> list[PartialGroup]:
        """The next groups whose responses have all ended, so many of them.

        Args:
          params: as they are sampled from.
          batch: the number of the rollout batch.
        """
        found: list[PartialGroup] = []
        while len(found) < wanted:
            goal = min(wanted - len(found), prompts_ahead(self._settings))
            self._go_on(params, goal, batch)
            ended = [group for group in self.groups if group.ended(self._settings.max_new_tokens)]
            found += sorted(ended, key=lambda group: (group.begun, group.place))[: wanted - len(found)]
            taken = {group.place for group in found}
            self.groups = [group for group in self.groups if group.place not in taken]
        return found

    def age(self) -> None:
        """There are newer parameters."""
        self.groups = [group.aged() for group in self.groups]

    def _go_on(self, params: Params, goal: int, batch: int) -> None:
        """Samples until so many groups have ended, and all that may not be left any longer."""
        settings, longest = self._settings, self._settings.max_new_tokens
        going: list[tuple[PartialGroup, ChatInputs]] = []
        for group in self.groups:
            if not group.ended(longest):
                going.append((group, encode_prompt(self._stream.prompts[group.number], self._processor)))
        while len(self.groups) < goal + settings.ahead:
            if (begun := self._next(batch)) is not None:
                self.groups.append(begun[0])
                going.append(begun)
        missing = goal - (len(self.groups) - len(going))
        due = {n for n, (group, _) in enumerate(going) if group.begun <= batch - settings.staleness}
        if missing <= 0 and not due:
            return
        sampling = SamplingParams(max_new_tokens=longest, temperature=1.0)
        requests = [Request(inputs.tokens_T, inputs.tiles_GHWC, sampling, self._thresholds) for _, inputs in going]
        seeds_QA = np.stack([self._seeds(group.place) for group, _ in going])
        kept = [group.responses for group, _ in going]
        written = self._sampler.begin(params, requests, settings.group, seeds_QA, settings.sample_prompts, kept)
        ended: set[int] = set()
        while len(ended) < missing or not due <= ended:
            ended |= set(written.step())
        for n, (group, _) in enumerate(going):
            group.responses = written.answers(n)
            if n not in ended:  # a prompt and what follows it are read again
                group.responses = [
                    each if each.finished or len(each.tokens) >= longest else each._replace(routes=None)
                    for each in group.responses
                ]

    def _next(self, batch: int) -> tuple[PartialGroup, ChatInputs] | None:
        """The next prompt of the stream; None if it can't be read."""
        (number,) = self._stream.numbers(1, self.consumed).tolist()
        self.consumed += 1
        try:
            inputs = encode_prompt(self._stream.prompts[number], self._processor)
        except InputError as error:
            self._skipped.extend([str(error)])
            return None
        return PartialGroup(self.consumed, number, batch), inputs

    def _seeds(self, place: int) -> np.ndarray:
        """uint32 [group], of the prompt that is the run's n-th."""
        sequence = np.random.SeedSequence((self._seed, _SEED_STREAM, place))
        return sequence.generate_state(self._settings.group)
