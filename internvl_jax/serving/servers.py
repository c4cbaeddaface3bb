"""A model becomes a server."""

import contextlib
import dataclasses
import socket
from collections.abc import Callable

import jax
import numpy as np

from internvl_jax.data import Processor
from internvl_jax.errors import InputError
from internvl_jax.inference import Ladders, get_reader
from internvl_jax.models import InternVL, LanguageHalf
from internvl_jax.serving.admission import Admission
from internvl_jax.serving.api_keys import ApiKeys
from internvl_jax.serving.app import make_app
from internvl_jax.serving.door import Doors
from internvl_jax.serving.dvd import VisionClient
from internvl_jax.serving.endpoints import Endpoints
from internvl_jax.serving.engine_thread import EngineThread
from internvl_jax.serving.fetching import Fetcher
from internvl_jax.serving.http_server import HttpServer, url
from internvl_jax.serving.limits import Limits
from internvl_jax.serving.metrics import ApiMetrics
from internvl_jax.serving.prompt_workers import PromptWorkers
from internvl_jax.serving.prompting import Prompting
from internvl_jax.serving.refusing import Refusing
from internvl_jax.serving.served_adapters import AdapterSources, ServedAdapters
from internvl_jax.serving.service import Service
from internvl_jax.serving.structured import Grammars
from internvl_jax.serving.vision_metrics import add_own_tower, add_vision_client

_KEPT_TILES = 1024  # whose features are kept, where it isn't said: of four requests at the limit
_CPU_PROMPTS, _PROMPTS = (32, 64, 128), (64, 128, 256)  # besides the chunk


@dataclasses.dataclass(frozen=True)
class Served:
    """How a model is served.

    Attributes:
      names: what clients call it; the first is told.
      fingerprint: see `inference.fingerprint`.
      keys: of clients.
      hosts: names of hosts that pictures are fetched from.
      workers: processes that make prompts.
      grace: seconds for answers that were begun when the server is to end.
      limits: what is taken.
      vision: addresses of vision servers, where the model is a language half.
      secret: shared with them.
      adapters: where those come from that requests may name, for a model with places.
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
    adapters: AdapterSources = dataclasses.field(default_factory=AdapterSources)


def ladders(
    classes: tuple[tuple[int, int], ...],
    chunk: int | None = None,
    page: int | None = None,
    feature_bytes: int | None = None,
    tiles: int = Limits.tiles,
    reserve: int | None = None,
) -> Ladders:
    """Sizes of a server: everything is compiled at its start, so they are few.

    Args:
      classes: (answers at a time, tokens of a prompt and its answer together), of rows of every length.
      chunk: tokens of prompts that are read between two tokens of those that are answering.
      page: tokens of a page, see `Ladders`.
      feature_bytes: how much the features of pictures may take that are kept; None: what 1,024 tiles take, at most
        1 GiB, but room for a request.
      tiles: how many a request may have.
      reserve: see `Ladders`.

    Raises:
      InputError: rows with pages have one length, and grow by themselves.
    """
    if page is not None and (reserve is not None or len(classes) > 1):
        raise InputError("rows that have pages are of one length and take them as they grow; leave out --page")
    cpu = jax.default_backend() == "cpu"
    chunk = min(chunk or (256 if cpu else 512), *(context for _, context in classes))
    sizes = tuple(size for size in (_CPU_PROMPTS if cpu else _PROMPTS) if size < chunk)
    return Ladders(
        prompts=(*sizes, chunk),
        together=(1, 4),
        tiles=(1, 2, 4, 8) if cpu else (1, 4, 8, 16),
        classes=classes,
        chunk=chunk,
        page=page,
        reserve=reserve,
        kept_bytes=feature_bytes or Ladders.kept_bytes,
        kept_tiles=None if feature_bytes else _KEPT_TILES,
        least_tiles=1 if feature_bytes else tiles,
    )


class ApiServer:
    """A model behind OpenAI's API.

    Args:
      model, processor: as `load` gives them, within `inference.leading` with `ladders`.
      served: how.

    Raises:
      InputError: requests may have more tiles than features are kept of.

    Attributes:
      service: what answers.
      doors: what is let in.
      adapters: what requests may name besides the model.
    """

    def __init__(self, model: InternVL | LanguageHalf, processor: Processor, served: Served):
        reader, limits, metrics, config = get_reader(model, processor), served.limits, ApiMetrics(), model.config
        self._reader = reader
        if (kept := reader.engine.tiles.capacity) < limits.tiles:
            raise InputError(
                f"a request may have {limits.tiles} tiles, but the features of {kept} are kept at a time; raise "
                f"--feature_bytes, or give --limit=tiles={kept}"
            )
        engine = EngineThread(reader, processor, reader.engine.ladders.piece, metrics.stepped)
        self._workers = PromptWorkers(processor, served.workers, limits)
        fetch = Fetcher(served.hosts, limits).fetch
        prompting = Prompting(
            *(config, processor.tokenizer, self._workers, fetch, limits),
            efforts=bool(processor.template.efforts),
            thumbnail=processor.image_config.thumbnail,
        )
        grammars = Grammars(processor, reader.engine.vocabulary, limits)
        vision = None
        if served.vision:
            wire, dtype = served.fingerprint.encode(), model.runtime.dtype
            vision = VisionClient(served.vision, config, model=wire, dtype=np.dtype(dtype), secret=served.secret)
            add_vision_client(metrics, vision)
        else:
            add_own_tower(metrics, reader.engine.tiles)
        self.service = Service(
            *(engine, limits, metrics, Admission(limits, engine.reading_rate), grammars, vision),
            *(config.image_token_id, reader.engine.longest),
        )
        metrics.gauge("num_requests_running", "Answers that have rows", lambda: engine.load.running)
        metrics.gauge("num_requests_waiting", "Requests without a token", lambda: self.service.admission.requests)
        metrics.gauge("kv_cache_usage_perc", "Share of the cache that is used", lambda: engine.load.share)
        metrics.count("num_preemptions", "Answers that were put back", lambda: engine.load.preempted)
        self.doors = Doors(served.keys, limits)
        if vision is not None:
            self.doors.vision = lambda: vision.status
        self.adapters = ServedAdapters(engine, config, served.adapters, served.names)
        endpoints = Endpoints(
            self.service, prompting, served.names, served.fingerprint, self.doors, lambda: self.adapters.names
        )
        self._refusing = Refusing()
        app = make_app(endpoints, metrics, self.doors, self._refusing)
        self._http = HttpServer(app, self.doors, self.service, self._prepare, served.grace)

    def run(self, listening: socket.socket, ready: Callable[[str], None]) -> bool:
        """Answers until SIGTERM, Ctrl-C or `stop`; says whether it ended in order.

        Args:
          listening: where.
          ready: called with the address once requests are answered.
        """
        self.service.engine.start()
        try:
            self._http.serve_at(listening, lambda: ready(url(listening)))
        finally:
            self.service.engine.close()
        return self.doors.phase != "failed"

    def stop(self) -> None:
        """Ends it, from any thread; what is being answered is broken off."""
        self._http.should_exit = True

    async def _prepare(self, opened: contextlib.AsyncExitStack) -> None:
        opened.callback(self._refusing.tell_all)
        await opened.enter_async_context(self._workers)
        if (vision := self.service.vision) is not None:
            opened.push_async_callback(vision.close)
            await vision.start()
        await opened.enter_async_context(self.adapters)
        await self.service.engine.call(self._reader.engine.warm_up)
