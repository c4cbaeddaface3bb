"""Pictures, text and samples on the host: numpy, Pillow, grain and tokenizers, no jax."""

from internvl_jax.data.media import images, tiling
from internvl_jax.data.media.images import load_image, tile_image
from internvl_jax.data.media.tiling import DEFAULT_MAX_PIXELS, ImageConfig, Tiles, num_image_tokens
from internvl_jax.data.processor import ChatInputs, Processor
from internvl_jax.data.prompt_service import PromptOrder, PromptReply, PromptSettings, serve_prompts
from internvl_jax.data.reading import check
from internvl_jax.data.reading.prompts import (
    Prompt,
    Prompts,
    PromptStream,
    encode_blind,
    encode_prompt,
    open_prompts,
    read_accuracies,
    screen_prompts,
)
from internvl_jax.data.rows import packing, views
from internvl_jax.data.rows.batch import MIN_TEXT, Batch, RowConfig, Sample, assemble_row, interleaved, stack_rows
from internvl_jax.data.rows.pipeline import BatchIterator, Pipeline, PipelineConfig, Skipped
from internvl_jax.data.rows.views import PlainRows, Probe, Probes, Rate, Rates, RowLayout, Views
from internvl_jax.data.rows.weights import WEIGHTINGS, Weighting, token_weight
from internvl_jax.data.text.templates import IMAGE, INTERNVL2_5, Message, Template, get_template
from internvl_jax.data.text.thinking import THINK, THINK_END, THINKING_SYSTEM, Channels, split_thinking
from internvl_jax.data.text.tokenizer import Tokenizer, train_bpe

__all__ = [
    "Batch",
    "BatchIterator",
    "Channels",
    "ChatInputs",
    "DEFAULT_MAX_PIXELS",
    "IMAGE",
    "INTERNVL2_5",
    "ImageConfig",
    "MIN_TEXT",
    "Message",
    "Pipeline",
    "PipelineConfig",
    "PlainRows",
    "Probe",
    "Probes",
    "Processor",
    "Prompt",
    "PromptOrder",
    "PromptReply",
    "PromptSettings",
    "PromptStream",
    "Prompts",
    "Rate",
    "Rates",
    "RowConfig",
    "RowLayout",
    "Sample",
    "Skipped",
    "THINK",
    "THINKING_SYSTEM",
    "THINK_END",
    "Template",
    "Tiles",
    "Tokenizer",
    "Views",
    "WEIGHTINGS",
    "Weighting",
    "assemble_row",
    "check",
    "encode_blind",
    "encode_prompt",
    "get_template",
    "images",
    "interleaved",
    "load_image",
    "num_image_tokens",
    "open_prompts",
    "packing",
    "read_accuracies",
    "screen_prompts",
    "serve_prompts",
    "split_thinking",
    "stack_rows",
    "tile_image",
    "tiling",
    "token_weight",
    "train_bpe",
    "views",
]
