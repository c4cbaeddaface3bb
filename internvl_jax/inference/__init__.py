"""Answers: loading, chat, and underneath them prefill and decode with a cache.

A `Generator` turns token prompts into tokens; `chat`, `stream_chat` and `answer_many` do so for messages.
"""

from internvl_jax.inference import terminal
from internvl_jax.inference.chat import Answer, answer_many, chat, complete, complete_many, get_generator, stream_chat
from internvl_jax.inference.compression import MODEL_THRESHOLDS, Decided, Thresholds, kept, quantile
from internvl_jax.inference.engine.buckets import Ladders, fit
from internvl_jax.inference.engine.generator import Generator
from internvl_jax.inference.engine.programs import Features, Programs, State
from internvl_jax.inference.engine.requests import STOPS, Request, Seen, Vocabulary
from internvl_jax.inference.engine.sampler import Rollout, Sampler
from internvl_jax.inference.engine.sampling import Sampling, stack_params
from internvl_jax.inference.engine.sampling_params import SamplingParams
from internvl_jax.inference.load import load, read_config, save_model
from internvl_jax.inference.text import TextStream

__all__ = [
    "Answer",
    "Decided",
    "Features",
    "Generator",
    "Ladders",
    "MODEL_THRESHOLDS",
    "Programs",
    "Request",
    "Rollout",
    "STOPS",
    "Sampler",
    "Sampling",
    "SamplingParams",
    "Seen",
    "State",
    "TextStream",
    "Thresholds",
    "Vocabulary",
    "answer_many",
    "chat",
    "complete",
    "complete_many",
    "fit",
    "get_generator",
    "kept",
    "load",
    "quantile",
    "read_config",
    "save_model",
    "stack_params",
    "stream_chat",
    "terminal",
]
