"""The vision server: takes tiles from language servers, and gives features back.

    with VisionServer(tower.encode, config, "127.0.0.1:5600", model=..., weights=...) as server:
        server.wait()

One thread has the socket and all state (`tile_desk`), one the tower (`tile_queue`); `wire` has the protocol.
"""

import collections
import contextlib
import hmac
import logging
import secrets
import socket
import threading
import time
from typing import NamedTuple, Self

import zmq

from internvl_jax.errors import InputError
from internvl_jax.models import InternVLConfig
from internvl_jax.serving.dvd import greeting, wire
from internvl_jax.serving.dvd.dvd_settings import VisionServerCounters, VisionServerLimits, VisionServerState
from internvl_jax.serving.dvd.ending import end_sockets
from internvl_jax.serving.dvd.tile_desk import TileDesk
from internvl_jax.serving.dvd.tile_queue import EncodeCall, TileQueue, TowerBatch
from internvl_jax.serving.dvd.wire_messages import (
    NONCE,
    Bye,
    Cancel,
    Challenge,
    Code,
    EncodeTiles,
    Hello,
    Ping,
    Pong,
    Proof,
    TilePixels,
    TileShape,
    Welcome,
    WireError,
    WireFault,
    WireMessage,
)

log = logging.getLogger(__name__)

_TICK = 50  # milliseconds between looks at the clock
_TELL = 0.02  # seconds between two states
_AT_ONCE = 64  # messages between looks at what the tower has done
_SPARE = 64  # messages besides features that may be on their way to a client
_STRANGERS = 64  # clients that are just greeting; an older one has to begin again
_TRANSPORT = 5000  # milliseconds in which a connection must have become one of ZeroMQ's
_ZAP = "inproc://zeromq.zap.01"  # where libzmq asks whether a connection may be


class _Nonces(NamedTuple):
    client: bytes
    server: bytes


class VisionServer:
    """Serves features of tiles.

    Args:
      encode: uint8 `[G, side, side, 3]`, G up to `limits.batch`, to features; called in one thread.
      config: the model's config.
      address: `HOST:PORT` (port 0: any that is free) or `ipc://PATH`; other than loopback only with a secret.
      model: fingerprint of config, preprocessing and dtype, which clients must have too; at most 64 bytes.
      weights: fingerprint of the tower's, projector's and router's parameters; at most 64 bytes.
      secret: shared with the clients; at least 16 bytes.
      limits: see `VisionServerLimits`.

    Attributes:
      address: where it is reached; the real port from `start` on.
      state: what is there, a moment ago at most.

    Raises:
      InputError: address, secret or fingerprints can't be used.
    """

    def __init__(
        self,
        encode: EncodeCall,
        config: InternVLConfig,
        address: str,
        *,
        model: bytes,
        weights: bytes,
        secret: bytes | None = None,
        limits: VisionServerLimits | None = None,
    ):
        greeting.check_secret(secret)
        limits = limits or VisionServerLimits()
        self.address, self._secret = greeting.endpoint(address, secret), secret
        self._model, self._weights = greeting.filled(model), greeting.filled(weights)
        self._limits, self._shape = limits, TileShape.of(config)
        self._queue = TileQueue(encode, config.flash, limits.batch, limits.gather, self._passed, self._tower_over)
        self._desk = TileDesk(self._shape, config.flash, limits, self._queue, self._send)
        self.state = VisionServerState()
        self._batches = collections.deque[TowerBatch]()
        self._nonces = collections.OrderedDict[bytes, _Nonces]()
        self._heard = dict[bytes, float]()  # when each client was heard last
        self._gone = set[bytes]()  # clients that could not be reached
        self._stopping = self._tower_is_over = False
        self._complained = self._told = 0.0  # when, last
        self._thread = threading.Thread(target=self._run, name="vision server", daemon=True)

    @property
    def counters(self) -> VisionServerCounters:
        """What has happened since the start."""
        return self._desk.counters

    def start(self) -> None:
        """Binds the address and begins to serve.

        Raises:
          InputError: the address can't be had.
        """
        self._context = zmq.Context(io_threads=1)
        self._gate, self._router = self._context.socket(zmq.REP), self._context.socket(zmq.ROUTER)
        try:
            self._bind()
        except zmq.ZMQError as error:
            self._context.destroy(linger=0)
            raise InputError(f"{self.address} can't be had ({error}); choose another address or port") from None
        self.address = self._router.get_string(zmq.LAST_ENDPOINT)
        self._ear, self._mouth = socket.socketpair()  # how other threads wake the socket's
        for end in (self._ear, self._mouth):
            end.setblocking(False)
        self._queue.start()
        self._thread.start()

    def stop(self) -> None:
        """Tells the clients and ends; a batch in the tower is waited for."""
        self._stopping = True
        self._wake()
        self.wait()

    def wait(self) -> None:
        """Waits until the server has ended.

        Raises:
          RuntimeError: it ended by itself.
        """
        self._thread.join()
        if not self._stopping:
            raise RuntimeError("a thread of the vision server has died; its traceback stands above")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _bind(self) -> None:
        if self._secret is not None:
            self._gate.bind(_ZAP)
            self._router.plain_server = True
            self._router.zap_domain = b"internvl"
        self._router.ipv6 = "[" in self.address
        self._router.router_mandatory = True  # who can't be reached is noticed
        self._router.maxmsgsize = self._shape.longest
        self._router.rcvhwm = _SPARE
        self._router.sndhwm = self._limits.credits + _SPARE
        self._router.handshake_ivl = _TRANSPORT
        self._router.bind(self.address)

    # Called in the tower's thread.

    def _passed(self, batch: TowerBatch) -> None:
        self._batches.append(batch)
        self._wake()

    def _tower_over(self) -> None:
        self._tower_is_over = True
        self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # enough bytes are there to be heard, or nobody is
            self._mouth.send(b"\0")

    # Called in the socket's thread.

    def _run(self) -> None:
        poller = zmq.Poller()
        for source in (self._router, self._gate, self._ear):
            poller.register(source, zmq.POLLIN)
        try:
            while not (self._stopping or self._tower_is_over):
                poller.poll(_TICK)
                self._hear()
                self._admit()
                for _ in range(_AT_ONCE):
                    if not self._receive():
                        break
                while self._batches:
                    self._desk.passed(self._batches.popleft())
                self._tidy()
            for client in self._heard:
                self._send(client, Bye())
        finally:
            self._queue.stop()
            end_sockets(self._context)
            self._ear.close()
            self._mouth.close()

    def _hear(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._ear.recv(1 << 12)

    def _admit(self) -> None:
        """Answers libzmq whether a connection may be (RFC 27): only who knows the password may fill our memory."""
        with contextlib.suppress(zmq.Again):
            while self._secret is not None:
                version, number, _, _, _, mechanism, *given = self._gate.recv_multipart(zmq.DONTWAIT)
                expected = greeting.GATE_USER + b"\0" + greeting.gate(self._secret)
                allowed = mechanism == b"PLAIN" and hmac.compare_digest(b"\0".join(given), expected)
                if not allowed:
                    self._complain("somebody called who does not have the secret")
                verdict = (b"200", b"ok") if allowed else (b"400", b"another secret")
                self._gate.send_multipart((version, number, *verdict, b"", b""))

    def _receive(self) -> bool:
        """Takes a message in; whether there was one."""
        try:
            frame = self._router.recv(zmq.DONTWAIT, copy=False)
        except zmq.Again:
            return False
        client, count = frame.bytes, 0
        while frame.more:  # those of others may have many frames, of which one is kept at a time
            frame, count = self._router.recv(zmq.DONTWAIT, copy=False), count + 1
        try:
            if count != 1:
                raise WireError(f"a message of {count} frames; send one")
            self._take(client, wire.decode(frame.buffer, self._shape))
        except WireError as error:
            self.counters.refused += 1
            self._complain(str(error))
            self._send(client, WireFault(0, error.code, str(error)))
            self._forget(client)
        return True

    def _take(self, client: bytes, message: WireMessage) -> None:
        if client not in self._heard:
            self._greet(client, message)
            return
        self._heard[client] = time.monotonic()
        match message:
            case EncodeTiles():
                self._desk.ask(client, message)
            case TilePixels():
                self._desk.pixels(client, message)
            case Cancel(request):
                self._desk.cancel(client, request)
            case Ping():
                self._send(client, Pong())
            case Bye():
                self._forget(client)
            case _:
                raise WireError(f"a client sent {type(message).__name__}, out of turn; see the order of messages")

    def _greet(self, client: bytes, message: WireMessage) -> None:
        match message:
            case Hello(nonce):
                self._nonces[client] = nonces = _Nonces(nonce, secrets.token_bytes(NONCE))
                if len(self._nonces) > _STRANGERS:
                    self._nonces.popitem(last=False)
                self._send(client, Challenge(nonces.server))
            case Proof():
                self._send(client, self._welcome(message, self._nonces.pop(client, None)))
                self._heard[client] = time.monotonic()
            case _:
                raise WireError("the other side has not greeted, or was forgotten; say HELLO first", Code.GREETING)

    def _welcome(self, proof: Proof, nonces: _Nonces | None) -> Welcome:
        """The answer to a proof.

        Raises:
          WireError: the client can't be served.
        """
        if nonces is None:
            raise WireError("the proof answers no nonce of ours, which counts once; say HELLO again", Code.GREETING)
        expected = greeting.client_proof(self._secret, nonces.client, nonces.server, proof.model)
        if not hmac.compare_digest(proof.digest, expected):
            raise WireError(
                "the proof does not fit the secret and the nonces of this connection; give both sides the same secret",
                Code.SECRET,
            )
        if proof.model != self._model:
            raise WireError(
                f"the vision server has another model, preprocessing or dtype ({greeting.shown(self._model)}) than the "
                f"language server ({greeting.shown(proof.model)}); start both from the same directory",
                Code.MODEL,
            )
        if len(self._heard) >= self._limits.peers:
            raise WireError(f"{self._limits.peers} language servers are connected, as many as may be", Code.FULL)
        answer = greeting.server_proof(self._secret, nonces.client, nonces.server, self._model, self._weights)
        return Welcome(answer, self._weights, self._limits.credits, self._limits.timeout)

    def _send(self, client: bytes, message: WireMessage) -> None:
        if client in self._gone:
            return
        try:
            self._router.send_multipart((client, wire.encode(message)), zmq.DONTWAIT, copy=False)
        except zmq.Again:
            self._complain("a language server does not read what it asked for")
            self._gone.add(client)
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            self._gone.add(client)

    def _tidy(self) -> None:
        """Forgets clients that are dead, and tells the state."""
        now = time.monotonic()
        silent = [client for client, heard in self._heard.items() if now - heard > self._limits.timeout]
        for client in silent:
            self._complain(f"a language server was silent for {self._limits.timeout:g} s, and is forgotten")
            self._send(client, WireFault(0, Code.GREETING, "you were silent for too long; say HELLO again"))
        for client in (*silent, *self._gone):
            self._forget(client)
        self._gone.clear()
        if now - self._told >= _TELL:
            desk, self._told = self._desk, now
            self.state = VisionServerState(
                len(self._heard), desk.credits, desk.awaited, len(self._queue), desk.cache.bytes
            )

    def _forget(self, client: bytes) -> None:
        self._nonces.pop(client, None)
        self._heard.pop(client, None)
        self._desk.leave(client)

    def _complain(self, what: str) -> None:
        """At most once a second: strangers may not fill the disk."""
        if (now := time.monotonic()) - self._complained >= 1:
            self._complained = now
            log.warning("vision server %s: %s", self.address, what)
