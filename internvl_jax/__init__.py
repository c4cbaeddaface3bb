"""InternVL3.5 vision-language models in JAX: the same code on a laptop CPU, a GPU box and a TPU pod."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from internvl_jax import inference

    chat, load, stream_chat = inference.chat, inference.load, inference.stream_chat

__all__ = ["chat", "load", "stream_chat"]


def __getattr__(name: str) -> Any:
    """Imported when asked for: processes that only grade or read data live without JAX."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from internvl_jax import inference

    return getattr(inference, name)
