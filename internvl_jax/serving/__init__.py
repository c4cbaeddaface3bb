"""Servers: what comes in by HTTP is bounded, made into prompts, answered by the engine, and told as OpenAI does."""

from internvl_jax.serving.api_keys import ApiKeys
from internvl_jax.serving.http_server import listen
from internvl_jax.serving.limits import Limits
from internvl_jax.serving.servers import Served, ladders, serve

__all__ = ["ApiKeys", "Limits", "Served", "ladders", "listen", "serve"]
