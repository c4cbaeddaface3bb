"""Answers: sampling, prefill and decode with a cache, chat, loading.

A `Generator` turns token prompts into tokens; `chat`, `stream_chat` and `answer_many` are the same for messages.
"""

from internvl_jax.inference.generate import Generator, Request, Vocabulary
from internvl_jax.inference.sampling import SamplingParams

__all__ = ["Generator", "Request", "SamplingParams", "Vocabulary"]
