"""Many conversations, answered beside each other: one answer to each, or several.

Parallel thinking: of several answers to a question the best one (`best_of_n`). The first is the model's greedy one, the
others are drawn by seed (`candidate_seeds`); all share what was read of the prompt.
Source: InternVL3.5 (arXiv 2508.18265) 2.4.
"""

import collections
import dataclasses
from collections.abc import Callable, Iterable, Iterator

from internvl_jax.data import Messages, Processor, split_thinking
from internvl_jax.errors import InputError
from internvl_jax.inference.chat import Answer, get_reader
from internvl_jax.inference.choosing import Chooser, Selection
from internvl_jax.inference.compression import MODEL_THRESHOLDS, Thresholds
from internvl_jax.inference.engine.buckets import Ladders, fit
from internvl_jax.inference.engine.requests import Request
from internvl_jax.inference.engine.sampling_params import SamplingParams
from internvl_jax.models import InternVL

WINDOW_BYTES = 1 << 28  # bytes of tiles that are held on the host, about


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
    """An answer to each of many independent conversations, see `complete_groups`."""
    groups = complete_groups(model, processor, conversations, (), batch_size, sampling, progress, thresholds)
    return [answer for (answer,) in groups]


def complete_groups(
    model: InternVL,
    processor: Processor,
    conversations: Iterable[Messages],
    seeds: tuple[int | None, ...],
    batch_size: int = 128,
    sampling: SamplingParams | None = None,
    progress: Callable[[int], None] | None = None,
    thresholds: Thresholds = MODEL_THRESHOLDS,
) -> list[list[Answer]]:
    """Answers to many independent conversations, in their order.

    They are taken longest first, within windows that bound the host's memory.

    Args:
      seeds: see `Request`: so many answers are written to each conversation, which is read once for all of them.
      batch_size: how many answers are written at a time, at most; fewer where memory is short. (Those to one
        conversation are begun together, however many they are.)
      sampling: how all answers are written; greedily without it.
      progress: called with the number of conversations answered so far, whenever it grew.
      thresholds: the same for all conversations, see `chat`.

    Raises:
      InputError: as in `chat`, with the number of the conversation.
    """
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}; answer at least 1 conversation at a time")
    reader, each = get_reader(model, processor), len(seeds) or 1
    fit("rows", batch_size, Ladders.rows)
    sampling, answers = sampling or SamplingParams(), {}
    numbers: dict[int, int] = {}
    found: dict[int, dict[int, Answer]] = collections.defaultdict(dict)  # of requests that are being answered
    try:
        for window in _windows(processor, conversations, seeds, sampling, thresholds):
            window.sort(key=lambda item: len(item[1].tokens_T))  # the longest first, from the end
            while window or numbers:
                while window and (not numbers or each * (len(numbers) + 1) <= batch_size):
                    number, request = window.pop()
                    try:
                        numbers[reader.add(request, processor)] = number
                    except InputError as error:
                        raise InputError(f"conversation {number}: {error}") from None
                grew = False
                for piece in reader.take(numbers):
                    if piece.answer is not None:
                        found[piece.id][piece.number] = piece.answer
                        if len(found[piece.id]) == each:
                            group = found.pop(piece.id)
                            answers[numbers.pop(piece.id)] = [group[number] for number in range(each)]
                            reader.drop(piece.id)
                            grew = True
                if grew and progress is not None:
                    progress(len(answers))
    finally:
        for id in numbers:
            reader.drop(id)
    return [answers[number] for number in range(len(answers))]


@dataclasses.dataclass(frozen=True)
class BestOf:
    """Candidates for an answer, in the order in which they were drawn, and the choice among them."""

    candidates: tuple[Answer, ...]
    choice: Selection

    @property
    def answer(self) -> Answer:
        """The best of them."""
        return self.candidates[self.choice.best]


def best_of_n(
    model: InternVL,
    processor: Processor,
    messages: Messages,
    n: int,
    sampling: SamplingParams,
    choose: Chooser,
    thresholds: Thresholds = MODEL_THRESHOLDS,
) -> BestOf:
    """The best of n answers to a question.

    Args:
      messages, thresholds: see `chat`.
      sampling: how all but the first are drawn.
      choose: says which is best.

    Raises:
      InputError: as in `chat`, see `candidate_seeds`, or what `choose` raises.
    """
    seeds = candidate_seeds(n, sampling)
    (group,) = complete_groups(model, processor, [messages], seeds, sampling=sampling, thresholds=thresholds)
    return BestOf(tuple(group), choose(messages, [answer.text for answer in group]))


def candidate_seeds(n: int, sampling: SamplingParams) -> tuple[int | None, ...]:
    """The seeds of n candidates, as `Request` takes them: the first is greedy, the others have that of `sampling` and
    those that follow it.

    Raises:
      InputError: no candidate, or several that would all be the same.
    """
    if n < 1:
        raise InputError(f"best_of is {n}; choose among 1 answer or more")
    if n > 1 and sampling.temperature == 0:
        raise InputError("best_of draws answers, and at temperature 0 all are the same; give a higher temperature")
    return (None, *((sampling.seed + number) % 2**32 for number in range(n - 1)))


def _windows(
    processor: Processor,
    conversations: Iterable[Messages],
    seeds: tuple[int | None, ...],
    sampling: SamplingParams,
    thresholds: Thresholds,
) -> Iterator[list[tuple[int, Request]]]:
    """(number, request) of the conversations, as many at a time as fit the host."""
    window, size = [], 0
    for number, messages in enumerate(conversations):
        try:
            inputs = processor(messages)
        except InputError as error:
            raise InputError(f"conversation {number}: {error}") from None
        window.append((number, Request(inputs.tokens_T, inputs.tiles_GHWC, sampling, thresholds, seeds)))
        size += inputs.tiles_GHWC.nbytes
        if size >= WINDOW_BYTES:
            yield window
            window, size = [], 0
    if window:
        yield window
