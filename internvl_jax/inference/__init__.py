"""Answers: loading, chat, and underneath them prefill and decode with a cache.

An `Engine` turns token prompts into tokens; `chat`, `stream_chat` and `answer_many` do so for messages.
"""

from internvl_jax.inference.chat import (
    Answer,
    Piece,
    TextReader,
    answer_many,
    chat,
    complete,
    complete_many,
    get_engine,
    leading,
    stream_chat,
)
from internvl_jax.inference.compression import MODEL_THRESHOLDS, Decided, Thresholds, kept, quantile
from internvl_jax.inference.engine.buckets import Ladders, fit
from internvl_jax.inference.engine.engine import Engine
from internvl_jax.inference.engine.group_runner import GroupSlots
from internvl_jax.inference.engine.group_seats import GroupSeats, Layout
from internvl_jax.inference.engine.memory import GroupMemory, GroupSize, group_memory, memory_limit
from internvl_jax.inference.engine.paged_programs import PagedPrograms
from internvl_jax.inference.engine.programs import Programs
from internvl_jax.inference.engine.remote_features import EncodedTiles, RemoteFeatures
from internvl_jax.inference.engine.requests import Request, Seen, Token, Vocabulary
from internvl_jax.inference.engine.row_state import STOPS, Begin, Features, Part, State, Wanted
from internvl_jax.inference.engine.sampler import Rollout, SampledGroups, Sampler
from internvl_jax.inference.engine.sampler_leader import LeadingSampler, follow_sampler
from internvl_jax.inference.engine.sampling import Sampling, stack_params
from internvl_jax.inference.engine.sampling_params import SamplingParams
from internvl_jax.inference.engine.tile_features import digest
from internvl_jax.inference.load import load, read_config, read_values, save_model
from internvl_jax.inference.terminal import converse, message, saying
from internvl_jax.inference.text import TextStream

__all__ = [
    "Answer",
    "Begin",
    "Decided",
    "EncodedTiles",
    "Engine",
    "Features",
    "GroupMemory",
    "GroupSeats",
    "GroupSize",
    "GroupSlots",
    "Ladders",
    "Layout",
    "LeadingSampler",
    "MODEL_THRESHOLDS",
    "PagedPrograms",
    "Part",
    "Piece",
    "Programs",
    "TextReader",
    "RemoteFeatures",
    "Request",
    "Rollout",
    "STOPS",
    "SampledGroups",
    "Sampler",
    "Sampling",
    "SamplingParams",
    "Seen",
    "State",
    "TextStream",
    "Thresholds",
    "Token",
    "Vocabulary",
    "Wanted",
    "answer_many",
    "chat",
    "complete",
    "complete_many",
    "converse",
    "digest",
    "fit",
    "follow_sampler",
    "get_engine",
    "group_memory",
    "kept",
    "leading",
    "load",
    "memory_limit",
    "message",
    "quantile",
    "read_config",
    "read_values",
    "save_model",
    "saying",
    "stack_params",
    "stream_chat",
]
