"""How many may wait: work that can't be begun soon is refused at once, with a time after which to ask again."""

import math
import time
from collections.abc import Callable

from internvl_jax.serving.limits import Limits
from internvl_jax.serving.refusals import Refusal


class Ticket:
    """A request that waits for its first token; to be handed back.

    Attributes:
      since: `time.monotonic` of its arrival.
    """

    def __init__(self, admission: "Admission"):
        self.since = time.monotonic()
        self._admission, self._tokens, self._back = admission, 0, False
        admission.requests += 1

    def weigh(self, tokens: int) -> None:
        """Notes how long its prompt is.

        Raises:
          Refusal: 429, where prompts that wait are too long together.
        """
        admission = self._admission
        if admission.tokens and admission.tokens + tokens > admission.limits.waiting_tokens:
            raise admission.full(f"prompts of {admission.tokens:,} tokens wait")
        self._tokens += tokens
        admission.tokens += tokens

    def hand_back(self) -> None:
        """It waits no more; may be called again."""
        if not self._back:
            self._back = True
            self._admission.requests -= 1
            self._admission.tokens -= self._tokens


class Admission:
    """Who waits.

    Args:
      limits: how many may.
      rate: tokens of prompts that are read in a second; 0 where that isn't known.

    Attributes:
      requests: how many wait.
      tokens: of their prompts.
    """

    def __init__(self, limits: Limits, rate: Callable[[], float]):
        self.limits, self._rate = limits, rate
        self.requests = self.tokens = 0

    def ticket(self) -> Ticket:
        """For one more.

        Raises:
          Refusal: 429, where too many wait.
        """
        if self.requests >= self.limits.waiting_requests:
            raise self.full(f"{self.requests} requests wait")
        return Ticket(self)

    def full(self, why: str) -> Refusal:
        """Says when to come again."""
        rate = self._rate()
        seconds = min(max(math.ceil(self.tokens / rate) if rate else 1, 1), 60)
        message = f"the server is busy: {why}; ask again in {seconds} s."
        return Refusal(429, message, code="server_busy", headers={"Retry-After": str(seconds)})
