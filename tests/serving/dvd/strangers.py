"""The wire spoken by hand: right, and wrong."""

import contextlib
import socket
from collections.abc import Iterator

import zmq

from internvl_jax.serving.dvd import greeting, wire
from internvl_jax.serving.dvd.wire_messages import Challenge, Hello, Proof, TileShape, Welcome, WireFault, WireMessage
from tests.serving.dvd.fake_tower import MODEL, SECRET


class Stranger:
    """A DEALER without a client behind it."""

    def __init__(self, socket: "zmq.Socket[bytes]", shape: TileShape):
        self._socket, self._shape = socket, shape

    def send(self, *parts: bytes) -> None:
        self._socket.send_multipart(parts)

    def say(self, message: WireMessage) -> None:
        self.send(*map(bytes, wire.encode(message)))

    def hear(self, seconds: float = 5.0) -> WireMessage | None:
        """The next message; None if none comes."""
        if not self._socket.poll(1000 * seconds):
            return None
        return wire.decode(self._socket.recv_multipart(), self._shape)

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
    return b"\xff" + bytes(8) + b"\x7f\3\0" + b"NULL".ljust(20, b"\0") + bytes(32) + b"\4" + bytes([len(ready)]) + ready
