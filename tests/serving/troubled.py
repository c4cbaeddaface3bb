"""A processor that gets into trouble over words, for workers: pictures that do so for certain are hard to come by."""

import dataclasses
import os
import re
import signal
import sys

from internvl_jax.data import ChatInputs, Processor

STUCK, KILLED, ENDED, FAULTY, CLEVER = "stuck!", "killed!", "ended!", "faulty!", "clever!"


@dataclasses.dataclass(frozen=True)
class TroubledProcessor(Processor):
    """As its base, except for messages of one of the words above."""

    def __call__(self, messages, *arguments, **options) -> ChatInputs:
        word = messages[-1]["content"]
        if word == STUCK:
            re.fullmatch("(a+)+", "a" * 60 + "b")  # for ages, in C, and no other thread runs
        elif word == KILLED:
            os.kill(os.getpid(), signal.SIGKILL)
        elif word == ENDED:
            sys.exit(0)
        elif word == FAULTY:
            raise RuntimeError(f"a fault that repeats the request: {messages}")
        return super().__call__(messages, *arguments, **options)
