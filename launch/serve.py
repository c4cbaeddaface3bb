"""Serves a model: OpenAI's API, and a page to talk to it.

    python -m launch.serve --checkpoint=DIR --port=8000

says `ready` with its address once everything is compiled. Only this machine reaches it, unless --host says otherwise;
then clients need a key, from --api_key_file or $INTERNVL_API_KEY. Ctrl-C or SIGTERM ends it: answers that were begun
are finished, what comes later is refused.
"""

import pathlib
import sys

from absl import flags

from internvl_jax.inference import Ladders, fingerprint
from internvl_jax.serving import ApiKeys, Served, ladders, listen, serve
from launch import checkpoint, server_limits, together

_HOST = flags.DEFINE_string("host", "127.0.0.1", "address to listen at; any but this machine's own needs a key")
_PORT = flags.DEFINE_integer("port", 8000, "port to listen at; 0: any that is free", 0, 65535)
_NAMES = flags.DEFINE_list("served_model_name", [], "what clients call the model; default: its directory's name")
_KEYS = flags.DEFINE_string("api_key_file", None, "file with a key of clients a line")
_HOSTS = flags.DEFINE_list("picture_hosts", [], "hosts that pictures may be fetched from by their URL; default: none")
_ROWS = flags.DEFINE_integer("rows", 8, "answers that are written at a time", 1)
_CONTEXT = flags.DEFINE_integer("context", 4096, "tokens of a conversation with its answer, at most", 64)
_CHUNK = flags.DEFINE_integer("chunk", None, "tokens of prompts that are read between two tokens of answers", 32)
_PAGE = flags.DEFINE_integer("page", None, "tokens of a page of the cache (TPU); default: rows of their own", 1)
_WORKERS = flags.DEFINE_integer("workers", 2, "processes that decode pictures", 1)
_GRACE = flags.DEFINE_float("grace", 60, "seconds for answers that were begun, when the server is to end", 0)


def main(argv: list[str]) -> None:
    del argv
    keys, limits = ApiKeys.load(_KEYS.value), server_limits.given()
    keys.check_host(_HOST.value)
    listening = listen(_HOST.value, _PORT.value)
    with together.opened(_ladders()) as (model, processor):
        names = tuple(_NAMES.value) or (pathlib.Path(checkpoint.directory()).resolve().name,)
        served = Served(
            names, fingerprint(model, processor), keys, frozenset(_HOSTS.value), _WORKERS.value, _GRACE.value, limits
        )
        print(f"compiling; {_HOST.value}:{listening.getsockname()[1]} answers 503 until then", file=sys.stderr)
        if not serve(model, processor, listening, served, lambda url: print(f"ready: {url}", flush=True)):
            sys.exit(1)


def _ladders() -> Ladders:
    return ladders(_ROWS.value, _CONTEXT.value, _CHUNK.value, _PAGE.value)


if __name__ == "__main__":
    together.run(main, _ladders)
