"""Pictures, text and samples on the host: numpy, Pillow, grain and tokenizers, no jax."""

from internvl_jax.data.chat import IMAGE, Message, Template, get_template
from internvl_jax.data.images import load_image, tile_image
from internvl_jax.data.processor import ChatInputs, Processor
from internvl_jax.data.thinking import split_thinking
from internvl_jax.data.tiling import ImageConfig, num_image_tokens
from internvl_jax.data.tokenizer import Tokenizer, train_bpe

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
