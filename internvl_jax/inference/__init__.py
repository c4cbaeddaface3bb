"""Answers: loading, chat, and underneath them prefill and decode with a cache.

A `Generator` turns token prompts into tokens; `chat`, `stream_chat` and `answer_many` do so for messages.
"""

from internvl_jax.inference.buckets import Ladders
from internvl_jax.inference.chat import Answer, answer_many, chat, complete_many, get_generator, stream_chat
from internvl_jax.inference.generate import Generator, Request, Vocabulary
from internvl_jax.inference.load import load, read_config, save_model
from internvl_jax.inference.programs import State
from internvl_jax.inference.sampling import SamplingParams

__all__ = [
    "Answer",
    "Generator",
    "Ladders",
    "Request",
    "SamplingParams",
    "State",
    "Vocabulary",
    "answer_many",
    "chat",
    "complete_many",
    "get_generator",
    "load",
    "read_config",
    "save_model",
    "stream_chat",
]
