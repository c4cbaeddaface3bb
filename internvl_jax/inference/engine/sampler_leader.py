"""Samplers in step: process 0 is asked, and the processes of all other hosts of its mesh sample with it.

As engines do (`leader.py`): a sampler does the same wherever it is told the same.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import numpy as np

from internvl_jax import interrupts
from internvl_jax.errors import InputError
from internvl_jax.inference.compression import MODEL_THRESHOLDS, Decided, Thresholds
from internvl_jax.inference.engine.leader import WireArray, WireTile, WireTiles
from internvl_jax.inference.engine.requests import Request
from internvl_jax.inference.engine.sampler import Rollout, SampledGroups, Sampler
from internvl_jax.inference.engine.sampling_params import SamplingParams
from internvl_jax.pod import Channel
from internvl_jax.sharding import Params


class _GroupsPrompt(msgspec.Struct, tag=True):
    """One of the requests of the next `_GroupsBegin`: all of them may be a gigabyte. Its tiles come before."""

    tokens: WireArray
    tiles: WireArray
    sampling: SamplingParams
    thresholds: Thresholds | None
    decided: Decided | None

    @classmethod
    def of(cls, asked: Request) -> "_GroupsPrompt":
        arrays, given = (WireArray.of(asked.tokens_T), WireArray.of(asked.tiles_GHWC[:0])), asked.thresholds
        decided = (None, given) if isinstance(given, Decided) else (given, None)
        return cls(*arrays, asked.sampling, *decided)


class _GroupsBegin(msgspec.Struct, tag=True):
    """`Sampler.begin`."""

    group: int
    seeds: WireArray
    prompts: int | None


class _GroupsStep(msgspec.Struct, tag=True):
    """`SampledGroups.step`."""


class _GroupsEnd(msgspec.Struct, tag=True):
    """Nothing more is told; `problem` says why, where it was a fault."""

    problem: str


_Command = WireTile | _GroupsPrompt | _GroupsBegin | _GroupsStep | _GroupsEnd
_DECODER = msgspec.msgpack.Decoder(_Command)


class LeadingSampler(Sampler):
    """The sampler of process 0, which the others follow (`follow_sampler`) until it is closed.

    Ctrl-C waits until what was told is done here too: the others do it in any case. Parameters stay as they are, and
    answers go on in no other call.

    Args:
      given, options: those of `Sampler`.
    """

    def __init__(self, *given: Any, **options: Any):
        super().__init__(*given, **options)
        self._channel = Channel()

    @interrupts.held()
    def begin(
        self,
        params: Params,
        requests: Sequence[Request],
        group: int,
        seeds: int | np.ndarray,
        prompts: int | None = None,
        kept: Sequence[Sequence[Rollout]] | None = None,
    ) -> SampledGroups:
        """See `Sampler.begin`."""
        if kept is not None:
            raise InputError("several processes begin all answers anew; leave out those that were kept")
        groups = super().begin(params, requests, group, seeds, prompts)
        for each in requests:
            for tile in WireTiles.of(each.tiles_GHWC):
                self._tell(tile)
            self._tell(_GroupsPrompt.of(each))
        self._tell(_GroupsBegin(group, WireArray.of(np.asarray(seeds)), prompts))
        return groups

    @interrupts.held()
    def close(self, problem: str = "") -> None:
        """Lets the others go; with a problem, as an InputError."""
        self._tell(_GroupsEnd(problem))

    @contextlib.contextmanager
    def _stepping(self) -> Iterator[None]:
        with interrupts.held(), super()._stepping():
            self._tell(_GroupsStep())
            yield

    def _tell(self, command: _Command) -> None:
        self._channel.tell(msgspec.msgpack.encode(command))


def follow_sampler(sampler: Sampler, params: Params) -> None:
    """Samples as the leader does, until it is closed.

    Args:
      sampler: made as the leader was, by the other processes.
      params: the leader's, of which this process has its part.

    Raises:
      InputError: what process 0 raised.
    """
    channel, tiles, requests, groups = Channel(), WireTiles(), list[Request](), None
    while True:
        match _DECODER.decode(channel.hear()):
            case WireTile() as told:
                tiles.take(told)
            case _GroupsPrompt() as told:
                thresholds = told.decided or told.thresholds or MODEL_THRESHOLDS
                arrays = told.tokens.array, tiles.stacked(told.tiles)
                requests.append(Request(*arrays, told.sampling, thresholds))
            case _GroupsBegin() as told:
                groups = sampler.begin(params, requests, told.group, told.seeds.array, told.prompts)
                requests = []
            case _GroupsStep():
                groups.step()
            case _GroupsEnd() as end:
                if end.problem:
                    raise InputError(end.problem)
                return
