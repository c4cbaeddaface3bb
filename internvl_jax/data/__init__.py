"""Pictures, text and samples on the host: numpy, Pillow, grain and tokenizers, no jax."""

from internvl_jax.data.media.images import load_image, tile_image
from internvl_jax.data.media.tiling import ImageConfig, num_image_tokens
from internvl_jax.data.processor import ChatInputs, Processor
from internvl_jax.data.text.templates import IMAGE, Message, Template, get_template
from internvl_jax.data.text.thinking import split_thinking
from internvl_jax.data.text.tokenizer import Tokenizer, train_bpe

__all__ = [
    "IMAGE",
    "ChatInputs",
    "ImageConfig",
    "Message",
    "Processor",
    "Template",
    "Tokenizer",
    "get_template",
    "load_image",
    "num_image_tokens",
    "split_thinking",
    "tile_image",
    "train_bpe",
]
