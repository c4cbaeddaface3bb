"""Answers: loading, chat, and underneath them prefill and decode with a cache.

A `Generator` turns token prompts into tokens; `chat`, `stream_chat` and `answer_many` do so for messages.
"""

from internvl_jax.inference.chat import Answer, answer_many, chat, complete, complete_many, get_generator, stream_chat
from internvl_jax.inference.engine.buckets import Ladders
from internvl_jax.inference.engine.generator import Generator
from internvl_jax.inference.engine.programs import Features, State
from internvl_jax.inference.engine.requests import Request, Seen, Vocabulary
from internvl_jax.inference.engine.sampler import Rollout, Sampler
from internvl_jax.inference.engine.sampling import SamplingParams
from internvl_jax.inference.load import load, read_config, save_model
from internvl_jax.inference.resolution import Thresholds

__all__ = [
    "Answer",
    "Features",
    "Generator",
    "Ladders",
    "Request",
    "Rollout",
    "Sampler",
    "SamplingParams",
    "Seen",
    "State",
    "Thresholds",
    "Vocabulary",
    "answer_many",
    "chat",
    "complete",
    "complete_many",
    "get_generator",
    "load",
    "read_config",
    "save_model",
    "stream_chat",
]
