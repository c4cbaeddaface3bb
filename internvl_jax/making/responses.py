"""A model's responses to prompts, for pairs to be made of: sampled and graded, or sampled and continued blindly.

What is drawn depends on seed, question and sample alone.
Source: released `tools/reasoning_data_pipeline` (mmpr_data_pipeline_correctness.py, mmpr_data_pipeline_dropout_ntp.py).
"""

import dataclasses
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

import jax
import numpy as np

from internvl_jax.data import ChatInputs, Processor, Prompt, encode_blind, encode_prompt
from internvl_jax.errors import InputError
from internvl_jax.inference import (
    Ladders,
    LeadingSampler,
    Request,
    Sampler,
    SamplingParams,
    TextStream,
    Vocabulary,
    follow_sampler,
)
from internvl_jax.models import InternVL
from internvl_jax.sharding import flatten

_LOG = logging.getLogger(__name__)
METHODS = ("correctness", "dropout_ntp")
_RESPONSE, _CONTINUATION = 0, 1  # random streams of a question
_Item = TypeVar("_Item")


@dataclasses.dataclass(frozen=True)
class PairConfig:
    """How pairs are made.

    Attributes:
        method: one of METHODS.
        samples: the number of responses to a question; with DropoutNTP also that of continuations.
        temperature, top_k, max_new_tokens: how responses are drawn (`SamplingParams`).
        max_prompt_tokens: longer prompts are left out.
        start_ratio: the share of a response's words that its continuation begins with.
        max_pairs: how many pairs a question may give.
        length_slack: the share by which chosen and rejected responses may differ in length, over all pairs.
        reward: the name of the reward that grades.
        max_broken: how many prompts may be unreadable; more stop the run.
        batch_size: how many responses are sampled at a time.
        seed: the seed of all draws.
    """

    method: str
    samples: int
    temperature: float
    top_k: int
    max_new_tokens: int
    max_prompt_tokens: int
    start_ratio: float
    max_pairs: int
    length_slack: float
    reward: str
    max_broken: int
    batch_size: int
    seed: int

    def __post_init__(self) -> None:
        rules = {
            "method": (self.method in METHODS, f"one of {', '.join(METHODS)}"),
            "samples": (self.samples >= 1 + (self.method == "correctness"), "at least 2 (1 for dropout_ntp)"),
            "temperature": (self.temperature > 0, "a positive number, or all samples are one"),
            "start_ratio": (0 <= self.start_ratio < 1, "at least 0 and below 1"),
            "max_pairs": (self.max_pairs >= 1, "at least 1"),
            "length_slack": (0 <= self.length_slack <= 1, "a share between 0 and 1 (any lengths)"),
            "batch_size": (self.batch_size >= self.samples, f"at least the samples of a question, {self.samples}"),
        }
        for name, (good, wanted) in rules.items():
            if not good:
                raise InputError(f"making pairs: {name} is {getattr(self, name)!r}; use {wanted}.")


@dataclasses.dataclass(frozen=True)
class Response:
    """What the model said.

    Attributes:
        text: the response with its thinking.
        tokens: how many tokens it has.
        ended: whether it came to an end by itself.
        accuracy: what the grader gave; None where nothing was graded.
        error: why the grader gave no accuracy.
    """

    text: str
    tokens: int
    ended: bool
    accuracy: float | None = None
    error: str | None = None

    @property
    def right(self) -> bool:
        """Graded, and more right than wrong."""
        return self.accuracy is not None and self.accuracy > 0.5

    @property
    def wrong(self) -> bool:
        """Graded, and not right."""
        return self.accuracy is not None and not self.right


class Verdict(Protocol):
    """What is read here of a grader's score of a response; `error` says why there is none."""

    @property
    def accuracy(self) -> float: ...

    @property
    def error(self) -> str | None: ...


Grade = Callable[[Sequence[str], Sequence[str]], Sequence[Verdict]]


def cut(text: str, ratio: float) -> str:
    """The first words of a text, that share of them; words are what single spaces part, as released."""
    words = text.split(" ")
    return " ".join(words[: int(len(words) * ratio)]).strip()


class Responder:
    """Answers batches of prompts by the method of the config.

    Args:
        model, processor: as `load` gives them.
        config: see `PairConfig`.
        grade: gives the scores of responses, given the true answers; None for DropoutNTP.
    """

    def __init__(self, model: InternVL, processor: Processor, config: PairConfig, grade: Grade | None):
        if config.method == "correctness" and grade is None:
            raise InputError("pairs by correctness need a grader; give one, or use the method dropout_ntp.")
        self._processor, self._config, self._grade = processor, config, grade
        self._sampler = _sampler(model, processor, config)
        self._params = flatten(model)
        self._sampling = SamplingParams(config.max_new_tokens, config.temperature, config.top_k)

    def close(self, problem: str = "") -> None:
        """Lets the other processes of a pod go; with a problem, as an InputError."""
        if isinstance(self._sampler, LeadingSampler):
            self._sampler.close(problem)

    def answer(self, batch: Sequence[tuple[int, Prompt]]) -> Iterator[dict[str, Any]]:
        """An entry for every (number, prompt), in their order and as soon as it is known: number, name, key, and
        "responses" (with "continuations"), as dictionaries of `Response`; or "broken", where a picture cannot be read.
        """
        inputs, broken = dict[int, ChatInputs](), dict[int, dict[str, Any]]()
        for row, (_, prompt) in enumerate(batch):
            try:
                if not self._given(prompt):
                    inputs[row] = encode_prompt(prompt, self._processor)
            except InputError as error:  # its header was sound, or it would not have come so far
                _LOG.warning("left out %s", error)
                broken[row] = {"broken": str(error)}
        seeds_QA, rows = self._seeds([batch[row][0] for row in inputs], _RESPONSE), list(inputs)
        drawn = ((rows[i], every) for i, every in self._draw(list(inputs.values()), seeds_QA))
        complete = self._graded if self._config.method == "correctness" else self._continued
        named = (
            (row, {name: [dataclasses.asdict(each) for each in every] for name, every in lists.items()})
            for row, lists in complete(batch, drawn)
        )
        found = _in_order(itertools.chain(broken.items(), named))
        for (number, prompt), entry in zip(batch, found, strict=True):
            yield {"number": number, "name": prompt.name, "key": prompt.key} | entry

    def _given(self, prompt: Prompt) -> list[Response]:
        """The response that a prompt brings along, once for every continuation."""
        if self._config.method == "correctness" or not prompt.response:
            return []
        tokens = len(self._processor.tokenizer.encode(prompt.response))
        return [Response(prompt.response, tokens, ended=True)] * self._config.samples

    def _graded(
        self, batch: Sequence[tuple[int, Prompt]], drawn: Iterable[tuple[int, list[Response]]]
    ) -> Iterator[tuple[int, dict[str, list[Response]]]]:
        for row, every in drawn:
            scores = self._grade([each.text for each in every], [batch[row][1].answer] * len(every))
            yield row, {"responses": [_scored(each, score) for each, score in zip(every, scores, strict=True)]}

    def _continued(
        self, batch: Sequence[tuple[int, Prompt]], drawn: Iterable[tuple[int, list[Response]]]
    ) -> Iterator[tuple[int, dict[str, list[Response]]]]:
        given = ((row, self._given(prompt)) for row, (_, prompt) in enumerate(batch))
        responses = dict(sorted([*((row, every) for row, every in given if every), *drawn]))
        inputs, begun, places = [], [], []
        for row, every in responses.items():
            prompt = batch[row][1]
            head = len(encode_blind(prompt, self._processor, "").tokens_T)
            for a, each in enumerate(every):
                inputs.append(encode_blind(prompt, self._processor, cut(each.text, self._config.start_ratio)))
                begun.append(inputs[-1].tokens_T[head:].tolist())
                places.append((row, a))
        seeds_QA = self._seeds([batch[row][0] for row in responses], _CONTINUATION)
        continued: dict[int, dict[int, Response]] = {row: {} for row in responses}
        for i, (each,) in self._draw(inputs, seeds_QA.reshape(-1, 1), begun):
            row, a = places[i]
            continued[row][a] = each
            if len(continued[row]) == len(responses[row]):
                yield row, {"responses": responses[row], "continuations": list(_in_order(continued[row].items()))}

    def _seeds(self, numbers: Sequence[int], stream: int) -> np.ndarray:
        A = self._config.samples
        sequences = (np.random.SeedSequence((self._config.seed, number, stream)) for number in numbers)
        return np.array([sequence.generate_state(A) for sequence in sequences], np.uint32).reshape(-1, A)

    def _draw(
        self, inputs: Sequence[ChatInputs], seeds_QA: np.ndarray, begun: Sequence[Sequence[int]] | None = None
    ) -> Iterator[tuple[int, list[Response]]]:
        """Numbers of the inputs, each with the responses to it, as these end; `begun` are the tokens that the answers
        to each start with."""
        if not inputs:
            return
        requests = [Request(each.tokens_T, each.tiles_GHWC, self._sampling) for each in inputs]
        A = seeds_QA.shape[1]
        groups = self._sampler.begin(self._params, requests, A, seeds_QA, self._config.batch_size // A)
        while groups.busy:
            for i in groups.step():
                start = begun[i] if begun else ()
                yield i, [self._read([*start, *each.tokens.tolist()]) for each in groups.answers(i)]

    def _read(self, tokens: Sequence[int]) -> Response:
        stops, stream = self._processor.stop_ids, TextStream(self._processor)
        text = "".join(stream.feed(token) for token in tokens if token not in stops) + stream.finish()
        return Response(text, len(tokens), tokens[-1] in stops or stream.stopped)


def _scored(response: Response, score: Verdict) -> Response:
    if score.error is not None:
        return dataclasses.replace(response, error=score.error)
    return dataclasses.replace(response, accuracy=float(score.accuracy))


def assist(model: InternVL, processor: Processor, config: PairConfig) -> None:
    """The part of the other processes where process 0 answers with a model that lies in several of them.

    Raises:
      InputError: what process 0 raised.
    """
    follow_sampler(_sampler(model, processor, config), flatten(model))


def _sampler(model: InternVL, processor: Processor, config: PairConfig) -> Sampler:
    ladders = dataclasses.replace(Ladders(), slots=(config.max_new_tokens,))
    place, kind = model.runtime.placement, Sampler
    mesh, rules = (None, None) if place is None else (place.mesh, place.rules)
    if jax.process_count() > 1 and jax.process_index() == 0:
        kind = LeadingSampler
    return kind(model.config, model.runtime.dtype, Vocabulary.of(processor), ladders, mesh, rules)


def _in_order(items: Iterable[tuple[int, _Item]]) -> Iterator[_Item]:
    """What is numbered from 0 on and comes in any order, each as soon as all before it have come."""
    waiting: dict[int, _Item] = {}
    count = 0
    for number, item in items:
        waiting[number] = item
        while count in waiting:
            yield waiting.pop(count)
            count += 1
