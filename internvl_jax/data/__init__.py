"""Pictures, text and samples on the host: numpy, Pillow, grain and tokenizers, no jax."""

from internvl_jax.data.media import frame_choice, images, tiling
from internvl_jax.data.media.images import load_image, tile_image
from internvl_jax.data.media.tiling import DEFAULT_MAX_PIXELS, ImageConfig, Tiles, frame_tiles, num_image_tokens
from internvl_jax.data.media.video import ShownVideo, VideoInfo, VideoLimits, VideoSource, show_video, video_info
from internvl_jax.data.media.video_options import VideoOptions
from internvl_jax.data.processor import ChatInputs, Processor
from internvl_jax.data.prompt_service import PromptOrder, PromptReply, PromptSettings, serve_prompts
from internvl_jax.data.reading import check
from internvl_jax.data.reading.prompt_stream import PromptStream
from internvl_jax.data.reading.prompts import (
    Prompt,
    Prompts,
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
from internvl_jax.data.text.boxes import (
    Action,
    Region,
    in_pixels,
    iou,
    is_inside,
    parse_actions,
    parse_regions,
    thousandths,
    write_box,
)
from internvl_jax.data.text.templates import IMAGE, INTERNVL2_5, Message, Template, get_template
from internvl_jax.data.text.thinking import (
    THINK,
    THINK_END,
    THINKING_SAMPLING,
    THINKING_SYSTEM,
    THINKING_TOKENS,
    Channels,
    ThinkingSwitch,
    is_unfinished,
    split_prediction,
    split_thinking,
)
from internvl_jax.data.text.tokenizer import Tokenizer, train_bpe

__all__ = [
    "Action",
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
    "Region",
    "RowConfig",
    "RowLayout",
    "Sample",
    "ShownVideo",
    "Skipped",
    "THINK",
    "THINKING_SAMPLING",
    "THINKING_SYSTEM",
    "THINKING_TOKENS",
    "THINK_END",
    "Template",
    "ThinkingSwitch",
    "Tiles",
    "Tokenizer",
    "VideoInfo",
    "VideoLimits",
    "VideoOptions",
    "VideoSource",
    "Views",
    "WEIGHTINGS",
    "Weighting",
    "assemble_row",
    "check",
    "encode_blind",
    "encode_prompt",
    "frame_choice",
    "frame_tiles",
    "get_template",
    "images",
    "in_pixels",
    "interleaved",
    "iou",
    "is_inside",
    "is_unfinished",
    "load_image",
    "num_image_tokens",
    "open_prompts",
    "packing",
    "parse_actions",
    "parse_regions",
    "read_accuracies",
    "screen_prompts",
    "serve_prompts",
    "show_video",
    "split_prediction",
    "split_thinking",
    "stack_rows",
    "thousandths",
    "tile_image",
    "tiling",
    "token_weight",
    "train_bpe",
    "video_info",
    "views",
    "write_box",
]
