"""Who may speak to whom: addresses, and what the shared secret makes of a connection's nonces."""

import hashlib
import hmac
import ipaddress
import re

from internvl_jax.errors import InputError
from internvl_jax.serving.dvd.wire_messages import FINGERPRINT

GATE_USER = b"internvl"
_LEAST_SECRET = 16  # bytes
_LOCAL = ("localhost",)


def check_secret(secret: bytes | None) -> None:
    """Refuses one that can be guessed."""
    if secret is not None and len(secret) < _LEAST_SECRET:
        raise InputError(
            f"the secret between the servers has {len(secret)} bytes; give at least {_LEAST_SECRET}, drawn at random"
        )


def endpoint(address: str, secret: bytes | None) -> str:
    """ZeroMQ's name of `HOST:PORT`, `[IPV6]:PORT` or `ipc://PATH`.

    Raises:
      InputError: it is none of these, or other machines can reach it and there is no secret.
    """
    if re.fullmatch(r"ipc://.+", address):
        return address
    found = re.fullmatch(r"(?:tcp://)?(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._*-]+):(\d{1,5})", address)
    if found is None or int(found[2]) > 65535:
        raise InputError(f"{address!r} is no address of a vision server; give HOST:PORT or ipc://PATH")
    if secret is None and not _loopback(found[1].strip("[]")):
        raise InputError(
            f"{address} can be reached from other machines; give both sides the same secret, or use 127.0.0.1"
        )
    return f"tcp://{found[1]}:{found[2]}"


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host in _LOCAL


def gate(secret: bytes) -> bytes:
    """The password of the transport: hex of HMAC-SHA256 over "IVDV gate" under the secret."""
    return hmac.new(secret, b"IVDV gate", hashlib.sha256).hexdigest().encode()


def client_proof(secret: bytes | None, client_nonce: bytes, server_nonce: bytes, model: bytes) -> bytes:
    """HMAC-SHA256 over "IVDV client", the client's nonce, the server's nonce and the 64 bytes of the model, under the
    secret (empty where there is none).
    """
    parts = (b"IVDV client", client_nonce, server_nonce, filled(model))
    return hmac.new(secret or b"", b"".join(parts), hashlib.sha256).digest()


def server_proof(secret: bytes | None, client_nonce: bytes, server_nonce: bytes, model: bytes, weights: bytes) -> bytes:
    """As `client_proof`, over "IVDV server", both nonces and the 64 bytes each of the model and of the weights."""
    parts = (b"IVDV server", client_nonce, server_nonce, filled(model), filled(weights))
    return hmac.new(secret or b"", b"".join(parts), hashlib.sha256).digest()


def filled(fingerprint: bytes) -> bytes:
    """A fingerprint as it stands on the wire."""
    if not 0 < len(fingerprint) <= FINGERPRINT:
        raise InputError(f"a fingerprint of {len(fingerprint)} bytes; give 1 to {FINGERPRINT}")
    return fingerprint.ljust(FINGERPRINT, b"\0")


def shown(fingerprint: bytes) -> str:
    """The beginning of a fingerprint, for people."""
    text = fingerprint.rstrip(b"\0")
    return (text.decode() if text.isalnum() else text.hex())[:12]
