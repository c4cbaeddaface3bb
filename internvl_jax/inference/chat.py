"""Messages in, text out: one conversation, streamed or not; `many` has thousands of them.

Engines stay, and their programs compiled, as long as the model lives.
"""

import contextlib
import dataclasses
import itertools
import threading
import weakref
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

import jax

from internvl_jax import interrupts
from internvl_jax.data import Messages, Processor, PromptSettings, ThinkingSwitch, split_thinking
from internvl_jax.errors import InputError
from internvl_jax.inference.compression import MODEL_THRESHOLDS, Thresholds, picture_tokens
from internvl_jax.inference.engine.buckets import Ladders
from internvl_jax.inference.engine.engine import Engine
from internvl_jax.inference.engine.leader import Leader, follow
from internvl_jax.inference.engine.requests import Request, Token, Vocabulary
from internvl_jax.inference.engine.sampling_params import SamplingParams
from internvl_jax.inference.text import TextStream, ThinkingStream
from internvl_jax.models import InternVL
from internvl_jax.sharding import Params, flatten


@dataclasses.dataclass(frozen=True)
class Answer:
    """The text of an answer.

    Attributes:
      text: the answer with its thinking, if there is any (see `split_thinking`).
      num_tokens: how many tokens the model wrote for it.
      picture_tokens: how many tokens each picture took in the prompt; fewer where a Flash model compressed tiles.
      cut: whether it ended because it may have no more tokens.
    """

    text: str
    num_tokens: int
    picture_tokens: tuple[int, ...]
    cut: bool = False


def chat(
    model: InternVL,
    processor: Processor,
    messages: Messages,
    max_new_tokens: int | None = None,
    temperature: float = 0.0,
    thinking: bool = False,
    thresholds: Thresholds = MODEL_THRESHOLDS,
    think: ThinkingSwitch = "auto",
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
      think: 'on' has the model think before it answers (best with `THINKING_SAMPLING` and a high max_new_tokens), 'off'
        keeps it from that, 'auto' leaves it to the system text and the model.

    Raises:
      InputError: bad messages or sampling parameters, or a conversation that is too long.
    """
    params = _params(max_new_tokens, temperature, sampling)
    text = complete(model, processor, messages, params, thresholds, think).text
    return text if thinking else split_thinking(text)[1]


def complete(
    model: InternVL,
    processor: Processor,
    messages: Messages,
    sampling: SamplingParams,
    thresholds: Thresholds = MODEL_THRESHOLDS,
    think: ThinkingSwitch = "auto",
) -> Answer:
    """The answer to a conversation, and what it and its pictures took; see `chat`."""
    processor, begun = _thinking(processor, think)
    *_, last = _stream(model, processor, messages, sampling, thresholds, begun=begun)
    return dataclasses.replace(last.answer, text=begun + last.answer.text)


def stream_chat(
    model: InternVL,
    processor: Processor,
    messages: Messages,
    max_new_tokens: int | None = None,
    temperature: float = 0.0,
    thinking: bool = False,
    thresholds: Thresholds = MODEL_THRESHOLDS,
    think: ThinkingSwitch = "auto",
    **sampling: Any,
) -> Iterator[str]:
    """The answer of `chat`, piece by piece: whole characters, and never a part of a stop string."""
    params = _params(max_new_tokens, temperature, sampling)
    processor, begun = _thinking(processor, think)
    written = _stream(model, processor, messages, params, thresholds, most=1, begun=begun)
    pieces = itertools.chain([begun], (piece.text for piece in written))
    if thinking:
        yield from filter(None, pieces)
        return
    stream = ThinkingStream()
    yield from filter(None, (stream.feed(piece)[1] for piece in pieces))
    if piece := stream.finish()[1]:
        yield piece


class Piece(NamedTuple):
    """What became certain of an answer.

    Attributes:
      id: the request.
      number: which of its answers.
      text: the next piece of text.
      answer: the whole of it, with its last piece.
      end: why it ended, 'stop' or 'length'.
      token: the token that was read.
    """

    id: int
    number: int
    text: str
    answer: Answer | None
    end: str | None
    token: Token


class TextReader:
    """Reads an engine's tokens as text, and ends answers at their stop strings. Several callers may share it, also from
    several threads: each takes the pieces of its own requests.
    """

    def __init__(self, engine: Engine):
        self.engine, self._lock = engine, threading.RLock()
        self._streams: dict[tuple[int, int], tuple[TextStream, list[str]]] = {}
        self._told: dict[int, list[Piece]] = {}

    def add(self, request: Request, processor: Processor, begun: str = "") -> int:
        """See `Engine.add`.

        Args:
          processor: the one that made the prompt.
          begun: how the answer starts by the prompt; its pieces are what follows.
        """
        with self._lock:
            id = self.engine.add(request)
            self._told[id] = []
            for number in range(len(request.seeds) or 1):
                stream = TextStream(processor, request.sampling.stop_strings, request.sampling.min_tokens)
                stream.begin(processor.begin(begun))
                self._streams[id, number] = stream, []
            return id

    def renew(self, params: Params) -> None:
        """See `Engine.params`; not while another caller has a step written."""
        with self._lock:
            self.engine.params = params

    def drop(self, id: int) -> None:
        """Ends a request, and forgets what was not taken of it."""
        with self._lock:
            self.engine.drop(id)
            self._told.pop(id, None)
            for key in [key for key in self._streams if key[0] == id]:
                del self._streams[key]

    def take(self, ids: Collection[int], most: int | None = None) -> list[Piece]:
        """What became certain of these requests; goes on with all requests if nothing has. [] once all of these ended.

        Args:
          most: see `Engine.step`.
        """
        with self._lock:
            while True:
                pieces = [piece for id in ids for piece in self._told[id]]
                for id in ids:
                    self._told[id] = []
                if pieces or not any(id in ids for id, _ in self._streams):
                    return pieces
                with interrupts.held():  # all callers' tokens are read, whoever is interrupted
                    self._step(most)

    def step(self, most: int | None = None) -> list[Piece]:
        """Goes on with all requests once; returns what became certain of any, for one caller that reads them all."""
        with self._lock:
            self._step(most)
            pieces = [piece for told in self._told.values() for piece in told]
            self._told = {id: [] for id in self._told}
            return pieces

    def writes(self, id: int) -> bool:
        """Whether an answer to this request is not at its end."""
        return any(key[0] == id for key in self._streams)

    def _step(self, most: int | None) -> None:
        for token in self.engine.step(most):
            self._read(token)

    def _read(self, token: Token) -> None:
        key = token.id, token.answer
        if key not in self._streams:  # it had a stop string before
            return
        stream, texts = self._streams[key]
        text = "" if token.end == "stop" else stream.feed(token.token)
        end, answer = "stop" if stream.stopped else token.end, None
        if end is not None:
            text += stream.finish()
            del self._streams[key]
            self.engine.drop(*key)
            pictures = picture_tokens(token.seen.tokens_T, self.engine.config.image_token_id)
            answer = Answer("".join(texts) + text, token.number, pictures, end == "length")
        texts.append(text)
        self._told[token.id].append(Piece(token.id, token.answer, text, answer, end, token))


_READERS: weakref.WeakKeyDictionary[InternVL, dict[Vocabulary, TextReader]] = weakref.WeakKeyDictionary()


def get_engine(model: InternVL, processor: Processor) -> Engine:
    """The engine kept for a model, with the model's present parameters."""
    return get_reader(model, processor).engine


@contextlib.contextmanager
def leading(model: InternVL, processor: Processor, ladders: Ladders | None = None) -> Iterator[bool]:
    """Lets process 0 answer with a model that lies in several processes; all of them enter.

    Within it process 0 chats, completes, evaluates or serves with this model, while the others follow and return when
    it has done. Without it every process has to make the same calls.

    Args:
      ladders: the sizes of the model's engine; None: those that suit offline work.

    Yields:
      whether this process is the first; the others have nothing to do any more.

    Raises:
      InputError: on the others, what process 0 raised.
    """
    vocabulary, readers = Vocabulary.of(processor), _READERS.setdefault(model, {})
    if jax.process_count() == 1:
        if ladders is not None:
            readers[vocabulary] = TextReader(Engine(model, vocabulary, ladders))
        yield True
        return
    if jax.process_index():
        follow(Engine(model, vocabulary, ladders))
        yield False
        return
    leader = Leader(model, vocabulary, ladders)
    readers[vocabulary] = TextReader(leader)
    problem = "process 0 failed"
    try:
        yield True
        problem = ""
    except InputError as error:
        problem = str(error)
        raise
    except (SystemExit, KeyboardInterrupt):  # asked to end, as a server is
        problem = ""
        raise
    finally:
        del readers[vocabulary]
        leader.close(problem)


def get_reader(model: InternVL, processor: Processor) -> TextReader:
    """The reader of the engine kept for a model."""
    readers = _READERS.setdefault(model, {})
    vocabulary = Vocabulary.of(processor)
    if vocabulary not in readers:
        readers[vocabulary] = TextReader(Engine(model, vocabulary))
    readers[vocabulary].renew(flatten(model))
    return readers[vocabulary]


def _params(max_new_tokens: int | None, temperature: float, sampling: dict[str, Any]) -> SamplingParams:
    longest = {} if max_new_tokens is None else {"max_new_tokens": max_new_tokens}
    return SamplingParams.named(temperature=temperature, **longest, **sampling)


def _thinking(processor: Processor, think: ThinkingSwitch) -> tuple[Processor, str]:
    """The processor that asks for it, and how the answer begins."""
    settings = PromptSettings.wanted(bool(processor.template.efforts), think)
    return settings.adapt(processor), settings.begun


def _stream(
    model: InternVL,
    processor: Processor,
    messages: Messages,
    params: SamplingParams,
    thresholds: Thresholds,
    most: int | None = None,
    begun: str = "",
) -> Iterator[Piece]:
    """Thinking and answer, piece by piece, from where the prompt has begun it."""
    inputs = processor(messages, begun=begun)
    reader = get_reader(model, processor)
    id = reader.add(Request(inputs.tokens_T, inputs.tiles_GHWC, params, thresholds), processor, begun)
    try:
        while pieces := reader.take([id], most):
            yield from pieces
    finally:
        reader.drop(id)
