"""A model becomes a server."""

import contextlib
import dataclasses
import socket
from collections.abc import Callable

import jax

from internvl_jax.data import Processor
from internvl_jax.inference import Ladders, get_reader
from internvl_jax.models import InternVL, LanguageHalf
from internvl_jax.serving.admission import Admission
from internvl_jax.serving.api_keys import ApiKeys
from internvl_jax.serving.app import make_app
from internvl_jax.serving.door import Doors
from internvl_jax.serving.dvd import VisionClient
from internvl_jax.serving.engine_thread import EngineThread
from internvl_jax.serving.fetching import Fetcher
from internvl_jax.serving.http_server import HttpServer, url
from internvl_jax.serving.limits import Limits
from internvl_jax.serving.metrics import Metrics
from internvl_jax.serving.prompt_workers import PromptWorkers
from internvl_jax.serving.prompting import Prompting
from internvl_jax.serving.service import Service
from internvl_jax.serving.structured import Grammars
from internvl_jax.serving.vision_metrics import add_vision_client

_CPU_PROMPTS, _PROMPTS = (32, 64, 128), (64, 128, 256)  # besides the chunk


@dataclasses.dataclass(frozen=True)
class Served:
    """How a model is served.

    Attributes:
      names: what clients call it; the first is told.
      fingerprint: which model with which parameters it is.
      keys: of clients.
      hosts: names of hosts that pictures are fetched from.
      workers: processes that make prompts.
      grace: seconds for answers that were begun when the server is to end.
      limits: what is taken.
      vision: addresses of vision servers, where the model is a language half.
      secret: shared with them.
    """

    names: tuple[str, ...]
    fingerprint: str
    keys: ApiKeys
    hosts: frozenset[str]
    workers: int
    grace: float
    limits: Limits
    vision: tuple[str, ...] = ()
    secret: bytes | None = None


def ladders(rows: int, context: int, chunk: int | None, page: int | None) -> Ladders:
    """Sizes of a server: everything is compiled at its start, so they are few.

    Args:
      rows: answers at a time.
      context: tokens of a prompt and its answer together.
      chunk: tokens of prompts that are read between two tokens of those that are answering.
      page: tokens of a page, see `Ladders`.
    """
    cpu = jax.default_backend() == "cpu"
    chunk = min(chunk or (256 if cpu else 512), context)
    sizes = tuple(size for size in (_CPU_PROMPTS if cpu else _PROMPTS) if size < chunk)
    return Ladders(
        prompts=(*sizes, chunk),
        together=(1, 4),
        tiles=(1, 2, 4, 8) if cpu else (1, 4, 8, 16),
        classes=((rows, context),),
        chunk=chunk,
        page=page,
    )


def serve(
    model: InternVL | LanguageHalf,
    processor: Processor,
    listening: socket.socket,
    served: Served,
    ready: Callable[[str], None],
) -> bool:
    """Answers over HTTP until the process is told to end; says whether it did so in order.

    Args:
      model, processor: as `load` gives them, within `inference.leading` with `ladders`.
      listening: where.
      ready: called with the address once requests are answered.
    """
    reader, limits, metrics, config = get_reader(model, processor), served.limits, Metrics(), model.config
    engine = EngineThread(reader, processor, reader.engine.ladders.piece, metrics.step.observe)
    workers = PromptWorkers(processor, served.workers, limits)
    fetch = Fetcher(served.hosts, limits).fetch
    prompting = Prompting(config, processor.tokenizer, workers, fetch, limits, processor.image_config.thumbnail)
    grammars = Grammars(processor, reader.engine.vocabulary, limits)
    vision = None
    if served.vision:
        wire = served.fingerprint.encode()
        vision = VisionClient(served.vision, config, model=wire, secret=served.secret)
        add_vision_client(metrics, vision)
    service = Service(
        *(engine, limits, metrics, Admission(limits, engine.reading_rate), grammars, vision),
        *(config.image_token_id, reader.engine.longest),
    )
    metrics.gauge("num_requests_running", "Answers that have rows", lambda: engine.load.running)
    metrics.gauge("num_requests_waiting", "Requests without a token yet", lambda: service.admission.requests)
    metrics.gauge("kv_cache_usage_perc", "Share of the cache that is used", lambda: engine.load.share)
    doors = Doors(served.keys, limits.body_bytes, limits.body_seconds, not served.keys.digests)
    doors.vision = None if vision is None else lambda: vision.status
    app = make_app(service, prompting, served.names, served.fingerprint, doors)

    async def prepare(opened: contextlib.AsyncExitStack) -> None:
        await opened.enter_async_context(workers)
        if vision is not None:
            opened.push_async_callback(vision.close)
            await vision.start()
        await engine.call(reader.engine.warm_up)

    engine.start()
    try:
        HttpServer(app, doors, service, prepare, served.grace).serve_at(listening, lambda: ready(url(listening)))
    finally:
        engine.close()
    return doors.phase != "failed"
