"""A small model behind the API, one for the session: its programs are compiled once."""

import threading

import httpx
import pytest

from internvl_jax.inference import fingerprint, leading
from internvl_jax.serving import ApiKeys, ApiServer, Limits, Served, ladders, listen
from internvl_jax.sharding import bind
from tests.inference.conftest import config, flash_model, params, processor, structure

__all__ = ["config", "flash_model", "params", "processor", "structure"]

LIMITS = Limits(waiting_requests=12, waiting_tokens=4000, default_tokens=24)

SIZES = ladders(((3, 768),), 64)


class Running:
    """A server in a thread of this process.

    Attributes:
      client: speaks to it.
      server: the `ApiServer`.
    """

    def __init__(self, model, processor, sizes=SIZES, **served):
        ready = threading.Event()
        self.model, self.processor = model, processor
        with leading(model, processor, sizes):
            given = {"names": ("small", "alias"), "keys": ApiKeys(()), "hosts": frozenset(), "workers": 1, "grace": 5.0}
            given |= {"fingerprint": fingerprint(model, processor), "limits": LIMITS}
            self.server = ApiServer(model, processor, Served(**given | served))
        self._listening = listen("127.0.0.1", 0)
        arguments = (self._listening, lambda url: ready.set())
        self._thread = threading.Thread(target=self.server.run, args=arguments, daemon=True)
        self._thread.start()
        assert ready.wait(300)
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self.client = httpx.Client(base_url=self.url, timeout=60)

    @property
    def num_compiled(self):
        return self.server.service.engine.num_compiled

    def close(self):
        self.server.stop()
        self.join()

    def join(self):
        """Waits for the server's end."""
        self.client.close()
        self._thread.join(30)
        assert not self._thread.is_alive()


@pytest.fixture(scope="session")
def running(structure, params, processor):
    """A server of the small model."""
    server = Running(bind(structure[0], params), processor)
    yield server
    server.close()
