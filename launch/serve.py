"""Serves a model: OpenAI's API, and a page to talk to it.

    python -m launch.serve --checkpoint=DIR --port=8000

says `ready` with its address once everything is compiled. Only this machine reaches it, unless --host says otherwise;
then clients need a key, from --api_key_file or $INTERNVL_API_KEY. Ctrl-C or SIGTERM ends it: answers that were begun
are finished, what comes later is refused.

Decoupled, the two halves of a model have servers of their own, as many as suit each:

    python -m launch.serve --checkpoint=DIR --role=vision --port=9000
    python -m launch.serve --checkpoint=DIR --role=language --vision=127.0.0.1:9000 --port=8000
"""

import contextlib
import sys

import jax
from absl import flags

from internvl_jax.errors import InputError
from internvl_jax.models import PartName
from internvl_jax.serving import ApiServer, check_wire, listen, loading, serve_vision
from launch import checkpoint, server_adapters, server_doors, server_flags, server_rows, together

_ROLE = flags.DEFINE_enum("role", "all", ["all", "vision", "language"], "which half of the model this server has")
_VISION = flags.DEFINE_list("vision", [], "with --role=language, HOST:PORT of each vision server")
_PORT = flags.DEFINE_integer("port", 8000, "port to listen at; 0: any that is free", 0, 65535)
_HEALTH = flags.DEFINE_integer("health_port", None, "with --role=vision, port of /health, /ready, /metrics", 0, 65535)


def main(argv: list[str]) -> None:
    del argv
    if (_ROLE.value == "language") != bool(_VISION.value):
        raise InputError("--role=language needs --vision=HOST:PORT,..., and no other role has it")
    server_adapters.check(_ROLE.value)
    if _ROLE.value == "vision":
        return _serve_vision()
    keys, limits, places = server_doors.keys(), server_flags.limits(), server_adapters.places()  # before anything slow
    listening = listen(server_doors.HOST.value, _PORT.value)
    server_flags.log_requests()
    with contextlib.ExitStack() as stack:
        with loading(listening, keys, limits):
            model, processor = stack.enter_context(together.opened(server_rows.ladders(), _part(), places))
            server = ApiServer(model, processor, server_flags.served(model, processor, _VISION.value))
        print("loaded; answers 503 until everything is compiled", file=sys.stderr, flush=True)
        if not server.run(listening, _say_ready):
            sys.exit(1)


def _serve_vision() -> None:
    if jax.process_count() > 1:
        raise InputError("a vision server is one process; start one on each host, and name all of them in --vision")
    host, secret = server_doors.HOST.value, server_doors.secret()
    address = f"[{host}]:{_PORT.value}" if ":" in host else f"{host}:{_PORT.value}"
    check_wire(address, secret)  # before anything slow
    health = None if _HEALTH.value is None else listen(host, _HEALTH.value)
    serve_vision(lambda: checkpoint.load("vision"), address, secret, health, _say_ready)


def _say_ready(address: str) -> None:
    print(f"ready: {address}", flush=True)


def _part() -> PartName:
    return "language" if _ROLE.value == "language" else "all"


if __name__ == "__main__":
    together.run(main, server_rows.ladders, _part, server_adapters.places)
