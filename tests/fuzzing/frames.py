"""Frames for a vision server, and for a language server that has met a bad one: right ones with faults, out of turn,
cut, doubled, too long, random; and bytes that are no frames at all.
"""

import asyncio
import concurrent.futures
import contextlib
import math
import pathlib
import random
import resource
import threading
import time
from collections.abc import Coroutine
from typing import Any

import numpy as np
import zmq

from internvl_jax.errors import InputError
from internvl_jax.inference import digest
from internvl_jax.serving.dvd import greeting, wire
from internvl_jax.serving.dvd.tile_dispatch import VisionUnavailable
from internvl_jax.serving.dvd.wire_messages import (
    Bye,
    Cancel,
    Challenge,
    EncodeTiles,
    Entry,
    Hello,
    KeptFeatures,
    Need,
    Ping,
    Pong,
    Proof,
    TilePixels,
    TileShape,
    Welcome,
    WireFault,
    WireMessage,
)
from tests.fuzzing import mutate
from tests.serving.dvd.fake_tower import FLASH, MODEL, WEIGHTS, FakeTower, client, local, same, server, tiles
from tests.serving.dvd.strangers import RawStranger, Stranger, raw_frame, raw_greeting, telephone

SHAPE = TileShape.of(FLASH)
SHOWN = tiles(*range(4))
NAMES = [digest(tile_HWC) for tile_HWC in SHOWN]
VALUES = np.ones((SHAPE.tokens, SHAPE.width), np.float32)
MOST_BYTES = 256 << 20  # that a process may come to need for all of it
_PATIENCE = 8.0  # seconds: what takes longer hangs


class Ports:
    """A vision server, a language server that uses it, and one that has met a bad vision server too."""

    def __init__(self) -> None:
        self.serving = server(FakeTower(FLASH), secret=None, limits={"peers": 64, "credits": 8, "timeout": 2.0})
        self.serving.start()
        self.context = zmq.Context()
        self.bad = self.context.socket(zmq.ROUTER)
        self.bad.linger = 0
        self.bad.bind("tcp://127.0.0.1:0")
        bad = self.bad.get_string(zmq.LAST_ENDPOINT)
        hasty = {"backoff": 0.01, "most_backoff": 0.02, "cache_bytes": 0, "absent": 0.1, "total": 1.0}
        self.good = client(FLASH, self.serving.address, secret=None, limits={"cache_bytes": 0})
        self.victim = client(FLASH, bad, secret=None, limits={"timeout": 0.1, **hasty})
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.call(self.good.start()).result(_PATIENCE)
        self.starting = self.call(self.victim.start())
        self.bytes = _peak()

    def call(self, coroutine: Coroutine[Any, Any, Any]) -> "concurrent.futures.Future[Any]":
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    def check(self) -> None:
        """Whether all is as it should be: a good client gets right features, and memory is as it was."""
        assert same(self.call(self.good.features(SHOWN)).result(_PATIENCE), local(SHOWN, FLASH))
        assert self.good.counters.lost == 0, "a good client was put out"
        assert _peak() - self.bytes < MOST_BYTES, f"{_peak() - self.bytes} bytes"

    def close(self) -> None:
        for each in (self.good, self.victim):
            self.call(each.close()).result(_PATIENCE)
        with contextlib.suppress(InputError):
            self.starting.result(_PATIENCE)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()
        self.serving.stop()
        self.context.destroy(linger=0)


def _peak() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def open_ports(folder: pathlib.Path) -> Ports:
    return Ports()


def frames(rng: random.Random, folder: pathlib.Path, ports: Ports) -> None:
    rng.choice((*[at_server] * 6, *[at_transport] * 3, at_client))(rng, ports)
    ports.check()


# At a vision server.


def at_server(rng: random.Random, ports: Ports) -> None:
    with telephone(ports.serving.address) as line, contextlib.suppress(OSError):  # too long a frame ends the connection
        other = RawStranger(line, SHAPE)
        if rng.random() < 0.7:
            other.enter(None)
        for _ in range(rng.choice((1, 1, 3, 10))):
            message = rng.choice((client_message, client_message, server_message))(rng)
            for parts in faulty(rng, message):
                other.send(*parts)
        if rng.random() < 0.5:
            hear(other)


def hear(other: Stranger) -> None:
    """What the server says has to be right, whatever it was told."""
    while (message := other.hear(0.01)) is not None:
        assert type(message) in (Challenge, Welcome, Need, KeptFeatures, WireFault, Pong), message


def client_message(rng: random.Random) -> WireMessage:
    number, at = rng.choice((1, 1, 2, 2**64 - 1)), rng.randrange(4)
    name = rng.choice((NAMES[at], rng.randbytes(16)))
    entries = tuple(
        Entry(rng.choice((*NAMES, name)), rng.randrange(4), rng.choice((math.nan, rng.random())))
        for _ in range(rng.choice((1, 4, 9)))
    )
    return rng.choice(
        (
            Hello(rng.randbytes(32)),
            Proof(rng.randbytes(32), greeting.filled(MODEL)),
            EncodeTiles(number, entries, rng.choice((math.nan, rng.random())), math.nan),
            EncodeTiles(number, tuple(map(Entry, NAMES))),
            TilePixels(number, name, SHOWN[at].tobytes()),
            Cancel(number),
            Ping(),
            Bye(),
        )
    )


def server_message(rng: random.Random, number: int = 1) -> WireMessage:
    name, values_PD = rng.choice(NAMES), VALUES * rng.choice((1, 1, math.nan))
    return rng.choice(
        (
            Challenge(rng.randbytes(32)),
            Welcome(rng.randbytes(32), greeting.filled(WEIGHTS), rng.choice((1, 8, 2**32 - 1)), 2.0),
            Need(number, tuple(rng.sample(NAMES, rng.randrange(1, 5)))),
            KeptFeatures(number, name, rng.random(), SHAPE.tokens, SHAPE.width, 2, values_PD),
            KeptFeatures(number, name, rng.random(), SHAPE.compressed, SHAPE.width, 2, values_PD[:1]),
            KeptFeatures(number, name, rng.choice((0.5, math.nan)), SHAPE.tokens, SHAPE.width, 0, None),
            WireFault(rng.choice((0, number)), rng.randrange(1, 9), rng.choice(("why", "\n" * 2000, "\0"))),
            Pong(),
            Bye(),
        )
    )


def faulty(rng: random.Random, message: WireMessage) -> list[list[bytes]]:
    """A message as it is, or with a fault; twice sometimes. A message is a list of frames, of which one is right."""
    frame = wire.encode(message)
    frames, fate = [frame], rng.randrange(10)
    if fate < 4:
        frames = [mutate.damaged(rng, frame)]
    elif fate == 4:
        frames = [rng.randbytes(rng.choice((0, 1, 32, 56, 5000))) for _ in range(rng.choice((1, 2, 3, 1000)))]
    elif fate == 5:
        frames = [frame] * rng.choice((2, 3, 500))
    elif fate == 6:
        frames = [bytes(rng.choice((SHAPE.longest - 1, SHAPE.longest + 1, 1 << 20)))]
    elif fate == 7:
        start = rng.randrange(32)
        frames = [(frame[:start] + rng.randbytes(rng.choice((1, 2, 4))) + frame)[: len(frame)]]
    return [frames] * rng.choice((1, 1, 1, 2, 20))


# At a language server.


def at_client(rng: random.Random, ports: Ports) -> None:
    """A request whose server is bad from some moment on. It ends, in one way or the other, and leaves nothing."""
    asked = ports.call(ports.victim.features(SHOWN))
    ends = time.monotonic() + _PATIENCE
    worse, nonces = rng.random(), dict[bytes, bytes]()
    while not asked.done():
        assert time.monotonic() < ends, "a request hangs"
        if not ports.bad.poll(20):
            continue
        who, frame = ports.bad.recv_multipart()
        for reply in answers(rng, worse, nonces, who, frame):
            with contextlib.suppress(zmq.ZMQError):
                ports.bad.send_multipart((who, reply[0]), zmq.DONTWAIT)  # see `Stranger.send`
    with contextlib.suppress(VisionUnavailable):
        come = asked.result()
        assert come.names == tuple(NAMES) and all(np.isfinite(each.astype(np.float32)).all() for each in come.features)
    while ports.victim.state.requests or ports.victim.state.credits or ports.victim.state.reserved_bytes:
        assert time.monotonic() < ends, f"something was left: {ports.victim.state}"
        time.sleep(0.005)


def answers(
    rng: random.Random, worse: float, nonces: dict[bytes, bytes], who: bytes, frame: bytes
) -> list[list[bytes]]:
    """What the bad server says to a message: the right thing, or something else."""
    message = wire.decode(frame, SHAPE)
    right = list[WireMessage]()
    match message:
        case Hello(nonce):
            nonces[who], right = nonce, [Challenge(b"s" * 32)]
        case Proof() if who in nonces:
            proof = greeting.server_proof(None, nonces[who], b"s" * 32, MODEL, WEIGHTS)
            right = [Welcome(proof, greeting.filled(WEIGHTS), 8, 2.0)]
        case EncodeTiles(number):
            right = [KeptFeatures(number, name, 0.5, SHAPE.tokens, SHAPE.width, 2, VALUES) for name in NAMES]
            right = [Need(number, tuple(NAMES)), *right]
        case Ping():
            right = [Pong()]
    said = list[list[bytes]]()
    for each in right:
        if rng.random() < worse * 0.5:
            number = message.request if type(message) is EncodeTiles else 1
            said += faulty(rng, rng.choice((each, server_message(rng, number), client_message(rng))))
        else:
            said.append([wire.encode(each)])
    return said


# Below the frames.


def at_transport(rng: random.Random, ports: Ports) -> None:
    content = raw_greeting() + raw_frame(wire.encode(Hello(b"n" * 32))) + b"\2" + rng.randbytes(8)
    if rng.random() < 0.3:
        content = rng.randbytes(rng.choice((1, 64, 5000)))
    with telephone(ports.serving.address) as line, contextlib.suppress(OSError):
        line.sendall(mutate.damaged(rng, content) + rng.randbytes(rng.choice((0, 1000))))
