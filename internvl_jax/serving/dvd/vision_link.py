"""A language server's connection to one vision server."""

import contextlib
import hmac
import logging
import secrets
import time
from collections.abc import Callable, Iterator

import zmq
from zmq.utils.monitor import recv_monitor_message

from internvl_jax.serving.dvd import greeting, wire
from internvl_jax.serving.dvd.dvd_settings import VisionClientLimits
from internvl_jax.serving.dvd.wire_messages import (
    NONCE,
    Bye,
    Challenge,
    Code,
    Hello,
    Ping,
    Pong,
    Proof,
    TileShape,
    Welcome,
    WireError,
    WireFault,
    WireMessage,
)

log = logging.getLogger(__name__)

_WAITING = 64  # messages that libzmq holds for us; TCP holds the others back
REFUSALS = {Code.VERSION, Code.SECRET, Code.MODEL}  # waiting does not heal these
_ONE_SIDE = "only one side has a secret, or it is no vision server; give both the same"
_LOST: dict[int, str] = {
    zmq.EVENT_DISCONNECTED: "the connection ended",
    zmq.EVENT_CLOSED: "nobody answers there",
    zmq.EVENT_CONNECT_RETRIED: "nobody answers there",
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: "it refuses the secret; give both sides the same",
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: _ONE_SIDE,
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL: _ONE_SIDE,  # it hung up
}
_UNREACHED = (zmq.EVENT_DISCONNECTED, zmq.EVENT_CLOSED, zmq.EVENT_CONNECT_RETRIED)


class VisionLink:
    """For one thread.

    Args:
      address: the server's, as libzmq writes it.
      shape: of the model's tiles.
      model: this side's fingerprint.
      secret: shared with the server.
      limits: see `VisionClientLimits`.
      pin: takes the server's fingerprint of weights; whether they are those of the other servers.
      poller: where the sockets are looked after.

    Attributes:
      ready: whether it may be asked.
      used: credits: tiles that it was asked for and that have not come.
      reason: why it is not ready.
      refused: whether that is something that waiting does not heal.
      tried: whether the first attempt is over.
    """

    def __init__(
        self,
        address: str,
        shape: TileShape,
        model: bytes,
        secret: bytes | None,
        limits: VisionClientLimits,
        pin: Callable[[bytes], bool],
        poller: zmq.Poller,
    ):
        self.address, self._shape, self._model, self._secret = address, shape, model, secret
        self._limits, self._pin, self._poller = limits, pin, poller
        self.ready, self.used, self.credits, self.tried = False, 0, 0, False
        self.reason, self.refused = "not reached yet", False
        self._pause, self._again = limits.backoff, 0.0
        self._socket: zmq.Socket[bytes] | None = None

    def open(self, context: "zmq.Context[zmq.Socket[bytes]]") -> None:
        """Begins an attempt."""
        self._socket = context.socket(zmq.DEALER)
        self._socket.reconnect_ivl = -1  # each attempt is a connection of its own
        self._socket.maxmsgsize = self._shape.longest
        self._socket.sndhwm, self._socket.rcvhwm = 0, _WAITING  # what we send is bounded by credits
        self._socket.linger = 0
        self._socket.connect_timeout = self._socket.handshake_ivl = round(1000 * self._limits.timeout)
        self._socket.ipv6 = "[" in self.address
        if self._secret is not None:
            self._socket.plain_username, self._socket.plain_password = greeting.GATE_USER, greeting.gate(self._secret)
        self._monitor = self._socket.get_monitor_socket(sum(_LOST))
        for source in (self._socket, self._monitor):
            self._poller.register(source, zmq.POLLIN)
        self._socket.connect(self.address)
        self._nonce, self._challenge = secrets.token_bytes(NONCE), b""
        self._heard = self._said = time.monotonic()
        self._beat = self._limits.heartbeat
        self.send(Hello(self._nonce))

    def close(self, why: str, refused: bool = False) -> None:
        """Ends a connection or an attempt; the next one is due after a pause."""
        if self._socket is None:
            return
        if self.ready or why != self.reason:
            log.warning("vision server %s: %s", self.address, why)
        if self.ready and time.monotonic() - self._since > self._limits.most_backoff:
            self._pause = self._limits.backoff  # it is not one that comes and goes
        for source in (self._socket, self._monitor):
            self._poller.unregister(source)
        self._socket.disable_monitor()
        self._monitor.close()
        self._socket.close()
        self._socket, self.ready, self.used, self.tried = None, False, 0, True
        self.reason, self.refused = why, refused
        self._again = time.monotonic() + self._pause
        self._pause = min(2 * self._pause, self._limits.most_backoff)

    def leave(self) -> None:
        """Says goodbye and closes."""
        if self.ready:
            self._socket.linger = 200
            self.send(Bye())
        self.reason, self.ready = "we have left", False
        self.close(self.reason)

    def send(self, message: WireMessage) -> None:
        """Queues a message; where it can't go is noticed by reading."""
        with contextlib.suppress(zmq.Again):  # the connection has ended, and we are about to read so
            self._socket.send(wire.encode(message), zmq.DONTWAIT, copy=False)

    def messages(self) -> Iterator[WireMessage]:
        """What has come about requests, some of it at a time; what concerns the connection is done with.

        Raises:
          WireError: the server sent what it may not, or refuses us.
        """
        for _ in range(_WAITING):
            if self._socket is None:
                return
            try:
                frame = self._socket.recv(zmq.DONTWAIT, copy=False)
            except zmq.Again:
                return
            self._heard = time.monotonic()
            if frame.more:
                raise WireError("it sent a message of several frames")
            message = wire.decode(frame.buffer, self._shape)
            match message:
                case Challenge(nonce) if not self._challenge:
                    self._challenge = nonce
                    proof = greeting.client_proof(self._secret, self._nonce, nonce, self._model)
                    self.send(Proof(proof, self._model))
                case Welcome() if not self.ready and self._challenge:
                    self._enter(message)
                case WireFault(0, code, text):
                    raise WireError(f"it says: {text}", Code(code) if code in set(Code) else Code.FRAME)
                case Bye():
                    self.close("it has left")
                case Pong():
                    pass
                case _ if self.ready:
                    yield message
                case _:
                    raise WireError(f"it sent {type(message).__name__} instead of a greeting", Code.GREETING)

    def watch(self, context: "zmq.Context[zmq.Socket[bytes]]") -> None:
        """Notices the end of the connection, silence, and when it is time to do something."""
        now = time.monotonic()
        if self._socket is None:
            if now >= self._again:
                self.open(context)
            return
        while self._socket is not None and self._monitor.poll(0):
            event = recv_monitor_message(self._monitor)["event"]
            if event in _LOST:
                self.close(_LOST[event], refused=event not in _UNREACHED)
        if self._socket is None:
            return
        if now - self._heard > self._limits.timeout:
            self.close(f"it was silent for {self._limits.timeout:g} s")
        elif self.ready and now - self._said >= self._beat:
            self._said = now
            self.send(Ping())

    def _enter(self, welcome: Welcome) -> None:
        expected = greeting.server_proof(self._secret, self._nonce, self._challenge, self._model, welcome.weights)
        if not hmac.compare_digest(welcome.digest, expected):
            raise WireError("its proof does not fit the secret; give both sides the same secret", Code.SECRET)
        if not self._pin(welcome.weights):
            raise WireError(
                f"its tower has other weights ({greeting.shown(welcome.weights)}) than the first vision server's; "
                "start all of them from the same directory, then this one again",
                Code.MODEL,
            )
        self.ready, self.tried, self.credits = True, True, welcome.credits
        self._since, self._beat = time.monotonic(), min(self._limits.heartbeat, welcome.timeout / 2)
        log.info("vision server %s: connected", self.address)
