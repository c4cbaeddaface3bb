"""Answers to all prompts of a request, as one list."""

import asyncio
import contextlib
import functools
import itertools
import operator
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from internvl_jax.serving.orders import Order
from internvl_jax.serving.refusals import Refusal
from internvl_jax.serving.replies import ChoiceText, SaidNow, Usage
from internvl_jax.serving.service import ReadyPrompt, Service, Writing

Asked = tuple[Order, Callable[[], Awaitable[ReadyPrompt]]]


class Writings:
    """What `Writing` is to one prompt; answers are numbered prompt by prompt.

    Attributes:
      first: of the first prompt.
    """

    def __init__(self, each: Sequence[Writing]):
        self.first, self._each = each[0], each

    @classmethod
    async def begin(cls, service: Service, asked: Sequence[Asked]) -> "Writings":
        """Begins all, or none.

        Raises:
          Refusal: what can't be answered, or not now.
        """
        admission, each = service.admission, list[Writing]()
        with contextlib.ExitStack() as begun:
            for order, prompted in asked:
                try:
                    each.append(await service.begin(order, prompted))
                except Refusal as refusal:
                    if refusal.status == 429 and each and admission.requests == len(each):  # nobody else waits
                        most = f"more than the {admission.limits.waiting_tokens:,} tokens that may wait here"
                        message = f"the texts of prompt have together {most}; send fewer at a time."
                        raise Refusal(400, message, "prompt") from None
                    raise
                begun.callback(each[-1].close)
                _move(each[:-1])  # the first ones are not read before the last has begun
            begun.pop_all()
        return cls(each)

    @property
    def choices(self) -> list[ChoiceText]:
        """The answers so far."""
        return [choice for writing in self._each for choice in writing.choices]

    @property
    def used(self) -> Usage:
        """What the request took so far."""
        return functools.reduce(operator.add, (writing.used for writing in self._each))

    async def said(self) -> AsyncIterator[list[tuple[int, SaidNow]]]:
        """See `Writing.said`."""
        firsts = itertools.accumulate((len(writing.choices) for writing in self._each), initial=0)
        streams = [(writing.said(), first) for writing, first in zip(self._each, firsts)]
        next_of = lambda stream: asyncio.ensure_future(anext(stream[0], None))
        waiting = {next_of(stream): stream for stream in streams}
        try:
            while waiting:
                done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    found = task.result()
                    stream = waiting.pop(task)
                    if found:  # as long as some are written, others may wait for their turn
                        _move(self._each)
                    if found is not None:
                        waiting[next_of(stream)] = stream
                        yield [(stream[1] + number, each) for number, each in found]
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    def close(self) -> None:
        """Ends what is not written; may be called again."""
        for writing in self._each:
            writing.close()


def _move(each: Sequence[Writing]) -> None:
    for writing in each:
        writing.moved = time.monotonic()
