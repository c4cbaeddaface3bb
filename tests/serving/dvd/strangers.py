"""The wire spoken by hand: right, and wrong."""

import contextlib
import socket
from collections.abc import Iterator

import zmq

from internvl_jax.serving.dvd import greeting, wire
from internvl_jax.serving.dvd.wire_messages import Challenge, Hello, Proof, TileShape, Welcome, WireFault, WireMessage
from tests.serving.dvd.fake_tower import MODEL, SECRET

_MORE, _LONG, _COMMAND = 1, 2, 4  # flags of ZMTP's frames


class Stranger:
    """A DEALER without a client behind it, by libzmq."""

    def __init__(self, dealer: "zmq.Socket[bytes]", shape: TileShape):
        self._dealer, self._shape = dealer, shape

    def send(self, *frames: bytes) -> None:
        """A message. (Several frames, half of which have gone when the socket is closed, abort the process.)"""
        [frame] = frames
        self._dealer.send(frame)

    def receive(self, seconds: float) -> bytes | None:
        """The next frame; None if none comes."""
        return self._dealer.recv() if self._dealer.poll(1000 * seconds) else None

    def say(self, message: WireMessage) -> None:
        self.send(wire.encode(message))

    def hear(self, seconds: float = 5.0) -> WireMessage | None:
        """The next message; None if none comes."""
        frame = self.receive(seconds)
        return None if frame is None else wire.decode(frame, self._shape)

    def greet(self, secret: bytes | None = SECRET, model: bytes = MODEL, nonce: bytes = b"n" * 32) -> Proof:
        """Sends HELLO and PROOF; the latter."""
        self.say(Hello(nonce))
        challenge = self.hear()
        assert type(challenge) is Challenge
        proof = Proof(greeting.client_proof(secret, nonce, challenge.nonce, model), greeting.filled(model))
        self.say(proof)
        return proof

    def enter(self, secret: bytes | None = SECRET) -> None:
        """Greets and is welcome."""
        self.greet(secret)
        assert type(self.hear()) is Welcome

    def fault(self) -> WireFault:
        """The ERROR that has to come."""
        fault = self.hear()
        assert type(fault) is WireFault
        return fault


class RawStranger(Stranger):
    """The same without libzmq, so that anything can be sent; without a secret."""

    def __init__(self, line: socket.socket, shape: TileShape):
        self._line, self._shape = line, shape
        line.sendall(raw_greeting())
        self._exactly(64)
        self._frame()  # READY

    def send(self, *frames: bytes) -> None:
        last = len(frames) - 1
        self._line.sendall(b"".join(raw_frame(frame, more=at < last) for at, frame in enumerate(frames)))

    def receive(self, seconds: float) -> bytes | None:
        self._line.settimeout(seconds)
        with contextlib.suppress(TimeoutError):
            return self._frame()
        return None

    def _frame(self) -> bytes:
        [flags] = self._exactly(1)
        size = int.from_bytes(self._exactly(8 if flags & _LONG else 1), "big")
        return self._exactly(size)

    def _exactly(self, size: int) -> bytes:
        content = b""
        while len(content) < size:
            if not (more := self._line.recv(size - len(content))):
                raise ConnectionResetError("hung up")
            content += more
            self._line.settimeout(5)
        return content


@contextlib.contextmanager
def stranger(address: str, shape: TileShape, gate: bytes | None = SECRET) -> Iterator[Stranger]:
    """Connected to an address; `gate` opens the transport."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.linger = 0
        if gate is not None:
            dealer.plain_username, dealer.plain_password = greeting.GATE_USER, greeting.gate(gate)
        dealer.connect(address)
        yield Stranger(dealer, shape)


def telephone(address: str) -> socket.socket:
    """A plain TCP connection."""
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    return socket.create_connection((host, int(port)), timeout=5)


def raw_greeting() -> bytes:
    """What a ZMTP 3.0 DEALER without security says before its first message (RFC 23)."""
    ready = b"\5READY\x0bSocket-Type" + (6).to_bytes(4, "big") + b"DEALER"
    return (
        b"\xff" + bytes(8) + b"\x7f\3\0" + b"NULL".ljust(20, b"\0") + bytes(32) + bytes([_COMMAND, len(ready)]) + ready
    )


def raw_frame(content: bytes, more: bool = False) -> bytes:
    """A frame as ZMTP writes it."""
    return bytes([_LONG + _MORE * more]) + len(content).to_bytes(8, "big") + content
