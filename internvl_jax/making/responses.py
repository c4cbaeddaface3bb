"""A model's responses to prompts, for pairs to be made of: sampled and graded, or sampled and continued blindly.

What is drawn depends on seed, question and sample alone.
Source: released `tools/reasoning_data_pipeline` (mmpr_data_pipeline_correctness.py, mmpr_data_pipeline_dropout_ntp.py).
"""

import collections
import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from internvl_jax.data import ChatInputs, Processor, Prompt, encode_blind, encode_prompt, split_steps
from internvl_jax.errors import InputError
from internvl_jax.inference import (
    Ladders,
    LeadingSampler,
    Request,
    Sampler,
    SamplingParams,
    TextStream,
    Vocabulary,
)
from internvl_jax.models import InternVL
from internvl_jax.sharding import flatten

_LOG = logging.getLogger(__name__)
METHODS = ("correctness", "dropout_ntp", "process")
_LONGEST = Ladders.prompts[-1]  # tokens that are read before an answer
_RESPONSE, _CONTINUATION, _COMPLETION = 0, 1, 3  # random streams of a question; pairs are chosen with another

Split = Callable[[str], list[str]]


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
        completions: with process, how many completions of a response's beginning say what its last step is worth.
        right_share: with process, a step is right if more than this share of them is.
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
    completions: int
    right_share: float

    @property
    def graded(self) -> bool:
        """Whether responses are held against true answers."""
        return self.method != "dropout_ntp"

    def __post_init__(self) -> None:
        rules = {
            "method": (self.method in METHODS, f"one of {', '.join(METHODS)}"),
            "samples": (
                self.samples >= 1 + (self.method == "correctness"),
                "at least 2 (else 1)",
            ),
            "temperature": (self.temperature > 0, "a positive number, or all samples are one"),
            "start_ratio": (0 <= self.start_ratio < 1, "at least 0 and below 1"),
            "max_pairs": (self.max_pairs >= 1, "at least 1"),
            "length_slack": (0 <= self.length_slack <= 1, "a share between 0 and 1 (any lengths)"),
            "completions": (
                1 <= self.completions <= self.batch_size,
                f"at least 1, at most {self.batch_size} (batch_size)",
            ),
            "right_share": (0 <= self.right_share < 1, "at least 0 and below 1"),
            "max_new_tokens": (
                self.method != "process" or self.max_prompt_tokens + self.max_new_tokens <= _LONGEST,
                f"with max_prompt_tokens at most {_LONGEST}: completions read the prompt and a response",
            ),
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


def at_blank_lines(text: str) -> list[str]:
    """The steps of a response, as it was written; joined they are the response."""
    *before, last = split_steps(text)
    return [*(f"{step}\n\n" for step in before), last]


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
        split: the steps of a response, see `at_blank_lines`.
    """

    def __init__(self, model: InternVL, processor: Processor, config: PairConfig, grade: Grade | None, split: Split):
        if config.graded and grade is None:
            raise InputError(f"the method {config.method} needs a grader; give one, or use the method dropout_ntp.")
        self._processor, self._config, self._grade, self._split = processor, config, grade, split
        self._sampler = open_sampler(model, processor, config)
        self._params = flatten(model)
        self._sampling = SamplingParams(config.max_new_tokens, config.temperature, config.top_k)
        complete = {"correctness": self._graded, "dropout_ntp": self._continued, "process": self._stepped}
        self._complete = complete[config.method]

    def close(self, problem: str = "") -> None:
        """Lets the other processes of a pod go; with a problem, as an InputError."""
        if isinstance(self._sampler, LeadingSampler):
            self._sampler.close(problem)

    def answer(self, batch: Sequence[tuple[int, Prompt]]) -> list[dict[str, Any]]:
        """An entry for every (number, prompt): number, name, key, and "responses" (with "continuations"), as
        dictionaries of `Response`; with process also "steps", pairs of the steps of a response and what each is worth;
        or "broken", where a picture cannot be read."""
        entries = [{"number": number, "name": prompt.name, "key": prompt.key} for number, prompt in batch]
        responses = [self._given(prompt) for _, prompt in batch]
        inputs: dict[int, ChatInputs] = {}
        for row, (_, prompt) in enumerate(batch):
            try:
                if not responses[row]:
                    inputs[row] = encode_prompt(prompt, self._processor)
            except InputError as error:  # its header was sound, or it would not have come so far
                _LOG.warning("left out %s", error)
                entries[row]["broken"] = str(error)
        drawn = self._draw(list(inputs.values()), self._seeds([batch[row][0] for row in inputs], _RESPONSE))
        for row, every in zip(inputs, drawn, strict=True):
            responses[row] = every
        sound = [row for row, every in enumerate(responses) if every]
        named = self._complete([batch[row] for row in sound], [responses[row] for row in sound])
        for row, lists in zip(sound, named, strict=True):
            entries[row] |= {name: [*map(_plain, every)] for name, every in lists.items()}
        return entries

    def _given(self, prompt: Prompt) -> list[Response]:
        """The response that a prompt brings along, once for every continuation."""
        if self._config.graded or not prompt.response:
            return []
        tokens = len(self._processor.tokenizer.encode(prompt.response))
        return [Response(prompt.response, tokens, ended=True)] * self._config.samples

    def _graded(
        self, batch: Sequence[tuple[int, Prompt]], responses: Sequence[list[Response]]
    ) -> list[dict[str, list[Any]]]:
        texts = [each.text for every in responses for each in every]
        truths = [prompt.answer for _, prompt in batch for _ in range(self._config.samples)]
        scores = iter(self._grade(texts, truths) if texts else ())
        return [{"responses": [_scored(each, next(scores)) for each in every]} for every in responses]

    def _stepped(
        self, batch: Sequence[tuple[int, Prompt]], responses: Sequence[list[Response]]
    ) -> list[dict[str, list[Any]]]:
        graded, config = self._graded(batch, responses), self._config
        inputs, begun, seeds, owners = [], [], [], list[tuple[int, str]]()  # owners: row of the batch, response
        steps: list[dict[str, list[str]]] = [{} for _ in batch]  # of different responses
        for row, ((number, prompt), lists) in enumerate(zip(batch, graded, strict=True)):
            asked = encode_prompt(prompt, self._processor)
            steps[row] = {each.text: self._split(each.text) for each in lists["responses"] if each.error is None}
            for place, (text, parts) in enumerate(steps[row].items()):
                for kept in range(1, len(parts)):
                    begun.append(self._processor.begin("".join(parts[:kept])))
                    tokens_T = np.concatenate([asked.tokens_T, np.array(begun[-1], np.int32)])
                    inputs.append(dataclasses.replace(asked, tokens_T=tokens_T))
                    sequence = np.random.SeedSequence((config.seed, number, _COMPLETION, place, kept))
                    seeds.append(sequence.generate_state(config.completions))
                    owners.append((row, text))
        drawn = self._draw(inputs, np.array(seeds, np.uint32).reshape(len(inputs), -1), begun)
        texts = [each.text for every in drawn for each in every]
        truths = [batch[row][1].answer for row, _ in owners for _ in range(config.completions)]
        scores = iter(self._grade(texts, truths) if texts else ())
        shares: dict[tuple[int, str], list[float | None]] = collections.defaultdict(list)
        for owner in owners:
            known = [each.accuracy for each in (next(scores) for _ in range(config.completions)) if each.error is None]
            shares[owner].append(sum(known) / len(known) if known else None)
        for row, lists in enumerate(graded):
            outcome = {each.text: each.accuracy for each in lists["responses"]}
            worth = {text: [*shares[row, text], outcome[text]] for text in steps[row]}
            lists["steps"] = [(steps[row][text], every) for text, every in worth.items() if None not in every]
        return graded

    def _continued(
        self, batch: Sequence[tuple[int, Prompt]], responses: Sequence[list[Response]]
    ) -> list[dict[str, list[Response]]]:
        inputs, begun = [], []
        for (_, prompt), every in zip(batch, responses, strict=True):
            head = len(encode_blind(prompt, self._processor, "").tokens_T)
            for each in every:
                inputs.append(encode_blind(prompt, self._processor, cut(each.text, self._config.start_ratio)))
                begun.append(inputs[-1].tokens_T[head:].tolist())
        seeds_QA = self._seeds([number for number, _ in batch], _CONTINUATION)
        drawn = iter(self._draw(inputs, seeds_QA.reshape(-1, 1), begun))
        return [{"responses": every, "continuations": [next(drawn)[0] for _ in every]} for every in responses]

    def _seeds(self, numbers: Sequence[int], stream: int) -> np.ndarray:
        A = self._config.samples
        sequences = (np.random.SeedSequence((self._config.seed, number, stream)) for number in numbers)
        return np.array([sequence.generate_state(A) for sequence in sequences], np.uint32).reshape(-1, A)

    def _draw(
        self, inputs: Sequence[ChatInputs], seeds_QA: np.ndarray, begun: Sequence[Sequence[int]] | None = None
    ) -> list[list[Response]]:
        """Responses to each of the inputs; `begun` are the tokens that the answers to each start with."""
        if not inputs:
            return []
        requests = [Request(each.tokens_T, each.tiles_GHWC, self._sampling) for each in inputs]
        A = seeds_QA.shape[1]
        drawn = self._sampler.sample(self._params, requests, A, seeds_QA, self._config.batch_size // A)
        begun = [()] * len(inputs) if begun is None else begun
        pairs = zip(begun, drawn, strict=True)
        return [[self._read([*start, *each.tokens.tolist()]) for each in every] for start, every in pairs]

    def _read(self, tokens: Sequence[int]) -> Response:
        stops, stream = self._processor.stop_ids, TextStream(self._processor)
        text = "".join(stream.feed(token) for token in tokens if token not in stops) + stream.finish()
        return Response(text, len(tokens), tokens[-1] in stops or stream.stopped)


def _plain(each: Any) -> Any:
    return dataclasses.asdict(each) if isinstance(each, Response) else each


def _scored(response: Response, score: Verdict) -> Response:
    if score.error is not None:
        return dataclasses.replace(response, error=score.error)
    return dataclasses.replace(response, accuracy=float(score.accuracy))


def open_sampler(model: InternVL, processor: Processor, config: PairConfig) -> Sampler:
    """That of this process; in process 0 of several one that leads the others."""
    ladders = dataclasses.replace(Ladders(), slots=(config.max_new_tokens,))
    place, kind = model.runtime.placement, Sampler
    mesh, rules = (None, None) if place is None else (place.mesh, place.rules)
    if jax.process_count() > 1 and jax.process_index() == 0:
        kind = LeadingSampler
    return kind(model.config, model.runtime.dtype, Vocabulary.of(processor), ladders, mesh, rules)
