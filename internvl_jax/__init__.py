"""InternVL3.5 vision-language models in JAX: the same code on a laptop CPU, a GPU box and a TPU pod."""

from internvl_jax.inference import chat, load, stream_chat

__all__ = ["chat", "load", "stream_chat"]
