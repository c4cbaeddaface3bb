"""Who may ask: API keys from a file or the environment, never from a flag, which every user of the machine can read."""

import dataclasses
import hashlib
import hmac
import ipaddress
import os
import pathlib
import re

from internvl_jax.errors import InputError
from internvl_jax.validation import read_file

VARIABLE = "INTERNVL_API_KEY"
_KEY = re.compile(r"[!-~]+")  # what an HTTP header carries
_SHORTEST = 16  # characters


@dataclasses.dataclass(frozen=True)
class ApiKeys:
    """The keys of a server, as digests: whoever prints this learns none. Without any, everybody may ask."""

    digests: tuple[bytes, ...]

    @classmethod
    def load(cls, file: str | pathlib.Path | None = None, environment: str = VARIABLE) -> "ApiKeys":
        """The keys of both places, one a line; empty lines and those that begin with # don't count.

        Args:
          file: a text file, or None.
          environment: name of a variable, which may be missing.

        Raises:
          InputError: the file can't be read or names no key, or a key is short or has characters that no header has.
        """
        keys = _read(os.environ.get(environment, ""), f"the variable {environment}")
        if file is not None:
            try:
                text = read_file(pathlib.Path(file)).decode()
            except UnicodeDecodeError:
                raise InputError(f"the key file {file} is not UTF-8; write one key a line.") from None
            found = _read(text, f"the key file {file}")
            if not found:
                raise InputError(f"the key file {file} has no key; write one a line.")
            keys += found
        return cls(tuple(dict.fromkeys(map(_digest, keys))))

    def allows(self, authorization: str | None) -> bool:
        """Whether the value of an Authorization header names a key, "Bearer KEY".

        How long it takes says nothing of the keys: digests are compared, with all keys, in constant time.
        """
        if not self.digests:
            return True
        scheme, _, key = (authorization or "").strip().partition(" ")
        given = _digest(key.strip())
        found = [hmac.compare_digest(given, digest) for digest in self.digests]
        return scheme.lower() == "bearer" and any(found)

    def check_host(self, host: str) -> None:
        """Raises InputError where a server at this address would need keys and there are none."""
        if required(host) and not self.digests:
            raise InputError(
                f"the server would listen at {host}, where other machines reach it, without an API key; name a key "
                f"file, set {VARIABLE}, or listen at 127.0.0.1."
            )


def required(host: str) -> bool:
    """Whether a server that listens at this address needs keys: at any but the machine's own."""
    if host.lower() == "localhost":
        return False
    try:
        return not ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:  # a name may stand for any address, an empty one for all
        return True


def _read(text: str, where: str) -> list[str]:
    lines = [line.strip() for line in text.split("\n")]
    keys = [line for line in lines if line and not line.startswith("#")]
    for key in keys:
        if not _KEY.fullmatch(key):
            raise InputError(f"{where} has a key with spaces or characters outside of ASCII; make one without.")
        if len(key) < _SHORTEST:
            raise InputError(
                f"{where} has a key of {len(key)} characters, which can be guessed; use {_SHORTEST} or more."
            )
    return keys


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="replace")).digest()
