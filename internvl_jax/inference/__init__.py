"""Answers: loading, chat, and underneath them prefill and decode with a cache.

An `Engine` turns token prompts into tokens; `chat`, `stream_chat` and `answer_many` do so for messages.
"""

from internvl_jax.inference.chat import (
    Answer,
    Piece,
    TextReader,
    chat,
    complete,
    get_engine,
    get_reader,
    leading,
    stream_chat,
)
from internvl_jax.inference.choosing import (
    AGGREGATIONS,
    Aggregation,
    Chooser,
    CriticChoice,
    Selection,
    VoteChoice,
    ranking,
)
from internvl_jax.inference.compression import MODEL_THRESHOLDS, Decided, Thresholds, kept, quantile
from internvl_jax.inference.critic import Critic, StepScores, check_critic
from internvl_jax.inference.engine.buckets import Ladders, fit
from internvl_jax.inference.engine.engine import Engine
from internvl_jax.inference.engine.group_runner import GroupSlots
from internvl_jax.inference.engine.group_seats import GroupSeats, Layout
from internvl_jax.inference.engine.memory import GroupMemory, GroupSize, group_memory, memory_limit
from internvl_jax.inference.engine.paged_programs import PagedPrograms
from internvl_jax.inference.engine.programs import Programs
from internvl_jax.inference.engine.requests import RemoteFeatures, Request, Seen, Token, Vocabulary
from internvl_jax.inference.engine.row_state import STOPS, Begin, Features, Part, State, Wanted
from internvl_jax.inference.engine.sampler import Rollout, SampledGroups, Sampler
from internvl_jax.inference.engine.sampler_leader import LeadingSampler, follow_sampler
from internvl_jax.inference.engine.sampling import Sampling, stack_params
from internvl_jax.inference.engine.sampling_params import SamplingParams
from internvl_jax.inference.engine.tile_features import TileFeatures, digest
from internvl_jax.inference.engine.vision_tower import EncodedTiles, VisionTower
from internvl_jax.inference.halves import fingerprint, weights_digest
from internvl_jax.inference.load import load, read_config, read_values, save_model
from internvl_jax.inference.many import BestOf, answer_many, best_of_n, candidate_seeds, complete_groups, complete_many
from internvl_jax.inference.terminal import converse, message, saying
from internvl_jax.inference.text import TextStream, ThinkingStream

__all__ = [
    "AGGREGATIONS",
    "Aggregation",
    "Answer",
    "Begin",
    "BestOf",
    "Selection",
    "Chooser",
    "Critic",
    "CriticChoice",
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
    "StepScores",
    "TextReader",
    "TextStream",
    "ThinkingStream",
    "Thresholds",
    "TileFeatures",
    "Token",
    "VisionTower",
    "Vocabulary",
    "VoteChoice",
    "Wanted",
    "answer_many",
    "best_of_n",
    "candidate_seeds",
    "chat",
    "check_critic",
    "complete",
    "complete_groups",
    "complete_many",
    "converse",
    "digest",
    "fingerprint",
    "fit",
    "follow_sampler",
    "get_engine",
    "get_reader",
    "group_memory",
    "kept",
    "leading",
    "load",
    "memory_limit",
    "message",
    "quantile",
    "ranking",
    "read_config",
    "read_values",
    "save_model",
    "saying",
    "stack_params",
    "stream_chat",
    "weights_digest",
]
