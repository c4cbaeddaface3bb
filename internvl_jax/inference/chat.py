"""Messages in, text out: one conversation, streamed or not, or thousands of them.

Programs stay compiled as long as the model lives.
"""

import dataclasses
import hashlib
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from internvl_jax.data import Processor, split_thinking
from internvl_jax.errors import InputError
from internvl_jax.inference.compression import MODEL_THRESHOLDS, Thresholds, picture_tokens
from internvl_jax.inference.engine.buckets import fit
from internvl_jax.inference.engine.generator import Generator
from internvl_jax.inference.engine.requests import Request, Vocabulary
from internvl_jax.inference.engine.sampling_params import SamplingParams
from internvl_jax.inference.text import AnswerStream, TextStream
from internvl_jax.models import InternVL
from internvl_jax.sharding import flatten

Messages = Sequence[dict[str, Any]]

WINDOW_BYTES = 1 << 28  # bytes of tiles that `complete_many` holds on the host, about
BATCH_TOKENS = 1 << 16  # rows times slots of its batches: bounds the cache

_GENERATORS: weakref.WeakKeyDictionary[InternVL, dict[Vocabulary, Generator]] = weakref.WeakKeyDictionary()


@dataclasses.dataclass(frozen=True)
class Answer:
    """The text of an answer.

    Attributes:
      text: the answer with its thinking, if there is any (see `split_thinking`).
      num_tokens: how many tokens the model wrote for it.
      picture_tokens: how many tokens each picture took in the prompt; fewer where a Flash model compressed tiles.
    """

    text: str
    num_tokens: int
    picture_tokens: tuple[int, ...]


def chat(
    model: InternVL,
    processor: Processor,
    messages: Messages,
    max_new_tokens: int | None = None,
    temperature: float = 0.0,
    thinking: bool = False,
    thresholds: Thresholds = MODEL_THRESHOLDS,
    **sampling: Any,
) -> str:
    """The model's answer to a conversation.

    Args:
      model, processor: as `load` gives them.
      messages: OpenAI-style, see `Processor`; the last is the user's. Append the answer and the next question to go on.
      max_new_tokens: the longest answer; 256 where neither this nor OpenAI's `max_tokens` is given.
      temperature, sampling: fields of `SamplingParams`, or OpenAI's names of them (`SamplingParams.named`).
      thinking: also give what the model thought before it answered, between <think> and </think>.
      thresholds: how readily a Flash model compresses tiles.

    Raises:
      InputError: bad messages or sampling parameters, or a conversation that is too long.
    """
    params = _params(max_new_tokens, temperature, sampling)
    text = complete(model, processor, messages, params, thresholds).text
    return text if thinking else split_thinking(text)[1]


def complete(
    model: InternVL,
    processor: Processor,
    messages: Messages,
    sampling: SamplingParams,
    thresholds: Thresholds = MODEL_THRESHOLDS,
) -> Answer:
    """The answer to a conversation, and what it and its pictures took; see `chat`."""
    inputs = processor(messages)
    request = Request(inputs.tokens_T, inputs.tiles_GHWC, sampling, thresholds)
    return _complete(get_generator(model, processor), processor, [request], 1)[0]


def stream_chat(
    model: InternVL,
    processor: Processor,
    messages: Messages,
    max_new_tokens: int | None = None,
    temperature: float = 0.0,
    thinking: bool = False,
    thresholds: Thresholds = MODEL_THRESHOLDS,
    **sampling: Any,
) -> Iterator[str]:
    """The answer of `chat`, piece by piece: whole characters, and never a part of a stop string."""
    params = _params(max_new_tokens, temperature, sampling)
    pieces = _stream_text(model, processor, messages, params, thresholds)
    if thinking:
        yield from pieces
        return
    answer = AnswerStream()
    yield from filter(None, map(answer.feed, pieces))
    if piece := answer.finish():
        yield piece


def _params(max_new_tokens: int | None, temperature: float, sampling: dict[str, Any]) -> SamplingParams:
    longest = {} if max_new_tokens is None else {"max_new_tokens": max_new_tokens}
    return SamplingParams.named(temperature=temperature, **longest, **sampling)


def _stream_text(
    model: InternVL, processor: Processor, messages: Messages, params: SamplingParams, thresholds: Thresholds
) -> Iterator[str]:
    """Thinking and answer, piece by piece."""
    inputs = processor(messages)
    text = TextStream(processor, params.stop_strings)
    stops = params.stop_ids(processor.stop_ids)
    request = Request(inputs.tokens_T, inputs.tiles_GHWC, params, thresholds)
    for tokens_B in get_generator(model, processor).stream([request]):
        if int(tokens_B[0]) in stops:
            break
        if piece := text.feed(tokens_B[0]):
            yield piece
        if text.stopped:
            return
    if piece := text.finish():
        yield piece


def answer_many(
    model: InternVL,
    processor: Processor,
    conversations: Iterable[Messages],
    batch_size: int = 128,
    sampling: SamplingParams | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[str]:
    """The texts of `complete_many`, without thinking."""
    answers = complete_many(model, processor, conversations, batch_size, sampling, progress)
    return [split_thinking(answer.text)[1] for answer in answers]


def complete_many(
    model: InternVL,
    processor: Processor,
    conversations: Iterable[Messages],
    batch_size: int = 128,
    sampling: SamplingParams | None = None,
    progress: Callable[[int], None] | None = None,
    thresholds: Thresholds = MODEL_THRESHOLDS,
) -> list[Answer]:
    """Answers to many independent conversations, in their order.

    They are sorted by length, equal pictures side by side, within windows that bound the host's memory.

    Args:
      batch_size: rows at a time, at most; less where prompts are long.
      sampling: how all answers are written; greedily without it.
      progress: called with the number of conversations answered so far, after every batch.
      thresholds: the same for all conversations, see `chat`.

    Raises:
      InputError: as in `chat`, with the number of the conversation.
    """
    generator = get_generator(model, processor)
    sampling = sampling or SamplingParams()
    fit("rows", batch_size, generator.ladders.rows)
    answers: dict[int, Answer] = {}
    for window in _windows(processor, conversations, batch_size, sampling, thresholds):
        window.sort(key=lambda item: _place(generator, item[1]))
        for batch in _batches(generator, window, batch_size):
            rows = batch_size if batch_size * _slots(batch[-1][1]) <= BATCH_TOKENS else 1
            requests = [request for _, request in batch]
            for (number, _), answer in zip(batch, _complete(generator, processor, requests, rows), strict=True):
                answers[number] = answer
            if progress is not None:
                progress(len(answers))
    return [answers[number] for number in range(len(answers))]


def get_generator(model: InternVL, processor: Processor) -> Generator:
    """The generator kept for a model, with the model's present parameters."""
    generators = _GENERATORS.setdefault(model, {})
    vocabulary = Vocabulary.of(processor)
    if vocabulary not in generators:
        generators[vocabulary] = Generator(model, vocabulary)
    generators[vocabulary].params = flatten(model)
    return generators[vocabulary]


def _complete(generator: Generator, processor: Processor, requests: list[Request], rows: int) -> list[Answer]:
    """One batch; it ends when all answers have, be it by a stop string."""
    sampling = requests[0].sampling
    stops = sampling.stop_ids(processor.stop_ids)
    streams = [TextStream(processor, sampling.stop_strings) for _ in requests]
    texts, counts, ended = [""] * len(requests), [0] * len(requests), [False] * len(requests)
    seen = generator.look(requests)
    for tokens_B in generator.stream(requests, rows, seen):
        for b, token in enumerate(tokens_B.tolist()):
            if ended[b]:
                continue
            counts[b] += 1
            if token not in stops:
                texts[b] += streams[b].feed(token)
            ended[b] = token in stops or streams[b].stopped or counts[b] == sampling.max_new_tokens
        if all(ended):
            break
    pictures = (picture_tokens(tokens_T, generator.config.image_token_id) for tokens_T in seen.tokens)
    return [
        Answer(text + stream.finish(), count, tokens)
        for text, stream, count, tokens in zip(texts, streams, counts, pictures, strict=True)
    ]


def _windows(
    processor: Processor,
    conversations: Iterable[Messages],
    batch_size: int,
    sampling: SamplingParams,
    thresholds: Thresholds,
) -> Iterator[list[tuple[int, Request]]]:
    """(number, request) of the conversations, as many at a time as fit the host, in whole batches."""
    window, size = [], 0
    for number, messages in enumerate(conversations):
        try:
            inputs = processor(messages)
        except InputError as error:
            raise InputError(f"conversation {number}: {error}") from None
        window.append((number, Request(inputs.tokens_T, inputs.tiles_GHWC, sampling, thresholds)))
        size += inputs.tiles_GHWC.nbytes
        if size >= WINDOW_BYTES and len(window) % batch_size == 0:
            yield window
            window, size = [], 0
    if window:
        yield window


def _batches(
    generator: Generator, window: list[tuple[int, Request]], batch_size: int
) -> Iterator[list[tuple[int, Request]]]:
    """Cuts a sorted window: the last of a batch is the longest."""
    batch: list[tuple[int, Request]] = []
    tiles = 0
    for item in window:
        tiles += len(item[1].tiles_GHWC)
        rows = len(batch) + 1
        too_much = tiles > generator.ladders.tiles[-1] or rows * _slots(item[1]) > BATCH_TOKENS
        if batch and (rows > batch_size or too_much):
            yield batch
            batch, tiles = [], len(item[1].tiles_GHWC)
        batch.append(item)
    yield batch


def _place(generator: Generator, request: Request) -> tuple[int, bytes]:
    """Where a request stands in the order: by compiled length, then by pictures."""
    length = fit("prompt tokens", len(request.tokens_T), generator.ladders.prompts)
    return length, hashlib.blake2b(np.ascontiguousarray(request.tiles_GHWC).data, digest_size=16).digest()


def _slots(request: Request) -> int:
    return len(request.tokens_T) + request.sampling.max_new_tokens
