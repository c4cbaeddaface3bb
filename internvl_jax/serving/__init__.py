"""Servers: what comes in by HTTP is bounded, made into prompts, answered by the engine, and told as OpenAI does.

A model is served by one process or pod, or by two kinds of servers that have a half of it each (`dvd`).
"""

from internvl_jax.serving.api_keys import ApiKeys
from internvl_jax.serving.http_server import listen
from internvl_jax.serving.limits import Limits
from internvl_jax.serving.loading import loading
from internvl_jax.serving.served_adapters import AdapterSources
from internvl_jax.serving.servers import ApiServer, Served, ladders
from internvl_jax.serving.service import requests_log
from internvl_jax.serving.vision_role import check_wire, serve_vision

__all__ = [
    "AdapterSources",
    "ApiKeys",
    "ApiServer",
    "Limits",
    "Served",
    "check_wire",
    "ladders",
    "listen",
    "loading",
    "requests_log",
    "serve_vision",
]
