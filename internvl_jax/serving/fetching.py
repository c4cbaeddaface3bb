"""Pictures from other hosts: off unless hosts are allowed by name, and never from a network that outsiders can't reach.

A request could name any address, and the server stands where its sender does not (server-side request forgery). So each
address, redirects included, must be of an allowed host; the host's name is resolved here, every address that it has
must be public, and the connection goes to the very address that was looked at: a name that answers otherwise a moment
later gains nothing.
"""

import asyncio
import dataclasses
import ipaddress
import re
import socket
import ssl
import urllib.parse
from collections.abc import Awaitable, Callable, Iterable

import httpcore2

from internvl_jax.serving.limits import Limits
from internvl_jax.serving.refusals import Refusal

Resolve = Callable[[str, int], Awaitable[list[str]]]
_URL = re.compile(r"[!-\[\]-~]{1,4096}")  # printable ASCII without the backslash, which readers of URLs disagree about
# IPv6 forms of IPv4 addresses: compatible, mapped (RFC 4291), translated (RFC 6052, 8215), Teredo, 6to4 (RFC 3056).
_FORMS = ("::/96", "::ffff:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48", "2001::/32", "2002::/16")
_TRANSLATED = tuple(map(ipaddress.ip_network, _FORMS))
_PORTS = {"https": 443, "http": 80}
_REDIRECTS = (301, 302, 303, 307, 308)
_HEADERS = [(b"Accept", b"image/*"), (b"Accept-Encoding", b"identity"), (b"User-Agent", b"internvl_jax")]


def is_public(address: str) -> bool:
    """Whether an IP address is one of the internet's hosts: not loopback, private, link-local, multicast or reserved,
    and no IPv6 form of an IPv4 address, whose owner decides where it leads."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    return ip.is_global and not ip.is_multicast and not any(ip in network for network in _TRANSLATED)


async def resolve(host: str, port: int) -> list[str]:
    """All addresses of a host, best first; OSError where there are none."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where a picture is.

    Attributes:
      target: path and query.
    """

    scheme: str
    host: str
    port: int
    target: str


class Fetcher:
    """Fetches pictures from the hosts that it is told.

    Args:
      hosts: names, to the letter; "name:port" for another port than the scheme's.
      limits: `image_bytes`, `fetch_seconds` and `redirects` hold.
      http: whether plain http is good enough.
      resolver, public: how names become addresses, and which addresses will do; tests have their own.
      tls: whom to trust; None for whom the system trusts.
    """

    def __init__(
        self,
        hosts: Iterable[str],
        limits: Limits,
        *,
        http: bool = False,
        resolver: Resolve = resolve,
        public: Callable[[str], bool] = is_public,
        tls: ssl.SSLContext | None = None,
    ):
        self._hosts = frozenset(host.lower() for host in hosts)
        self._limits, self._schemes = limits, ("https", "http") if http else ("https",)
        self._backend = _CheckedBackend(resolver, public)
        self._tls = tls or ssl.create_default_context() if self._hosts else None

    async def fetch(self, url: str) -> bytes:
        """The bytes behind an address.

        Raises:
          Refusal: 400: it may not be fetched, is too large, takes too long, or there is nothing.
        """
        seconds = self._limits.fetch_seconds
        try:
            async with asyncio.timeout(seconds):
                for _ in range(self._limits.redirects + 1):
                    place = self._place(url)
                    picture, location = await self._get(place)
                    if location is None:
                        return picture
                    url = _joined(url, location)
        except TimeoutError:
            raise _refusal(
                f"a picture took longer than {seconds:g} s to fetch, the limit; send it as a data URL."
            ) from None
        except (httpcore2.NetworkError, httpcore2.TimeoutException, httpcore2.ProtocolError, OSError) as error:
            raise _refusal(
                f"a picture could not be had from {place.host[:40]} ({type(error).__name__}); send it as a data URL."
            ) from None
        raise _refusal(f"a picture's address redirects more than {self._limits.redirects} times; name its last one.")

    def _place(self, url: str) -> _Place:
        """Where an address leads, if that may be fetched."""
        if not self._hosts:
            raise _refusal("this server fetches no pictures; send them as data URLs (data:image/...;base64,...).")
        if not _URL.fullmatch(url):
            raise _refusal("a picture's address has over 4096 characters, or such as no URL has; encode them with %.")
        try:
            parts = urllib.parse.urlsplit(url)
            port = parts.port
        except ValueError:
            raise _refusal("a picture's address is no URL; write https://HOST/PATH.") from None
        if parts.scheme not in self._schemes:
            raise _refusal(f"a picture's address begins with {parts.scheme[:40]!r}; use {' or '.join(self._schemes)}.")
        if "@" in parts.netloc:
            raise _refusal("a picture's address has a user or a password in it; leave them out.")
        host, usual = parts.hostname or "", _PORTS[parts.scheme]
        port = usual if port is None else port
        if (host if port == usual else f"{host}:{port}") not in self._hosts:
            raise _refusal(f"the host {f'{host}:{port}'[:40]!r} is not among those that this server fetches from.")
        return _Place(parts.scheme, host, port, (parts.path or "/") + (f"?{parts.query}" if parts.query else ""))

    async def _get(self, place: _Place) -> tuple[bytes, str | None]:
        """The bytes at a place, or the address that it redirects to."""
        url = httpcore2.URL(scheme=place.scheme, host=place.host, port=place.port, target=place.target)
        connections = httpcore2.AsyncConnectionPool(ssl_context=self._tls, network_backend=self._backend)
        async with connections, connections.stream("GET", url, headers=_HEADERS) as response:
            headers = {name.lower(): value for name, value in response.headers}
            if response.status in _REDIRECTS and b"location" in headers:
                return b"", headers[b"location"].decode("latin-1")
            if response.status != 200:
                raise _refusal(f"the host {place.host[:40]} answers a picture's address with {response.status}.")
            if headers.get(b"content-encoding", b"identity").lower() != b"identity":
                raise _refusal(f"the host {place.host[:40]} sends a picture packed, which nobody asked for.")
            size, chunks = int(headers.get(b"content-length", b"0")), []
            self._check(size)
            size = 0
            async for chunk in response.aiter_stream():
                size += len(chunk)
                self._check(size)
                chunks.append(chunk)
            return b"".join(chunks), None

    def _check(self, size: int) -> None:
        most = self._limits.image_bytes
        if size > most:
            raise _refusal(
                f"a fetched picture has at least {size} bytes, more than the limit of {most}; scale it down."
            )


class _CheckedBackend(httpcore2.AsyncNetworkBackend):
    """Connects to the addresses of a host, once all of them have been looked at."""

    def __init__(self, resolver: Resolve, public: Callable[[str], bool]):
        self._resolver, self._public, self._network = resolver, public, httpcore2.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        addresses = await self._resolver(host, port)
        if not addresses or not all(map(self._public, addresses)):
            raise _refusal(f"the host {host[:40]} has no address, or one that is not public; nothing is fetched there.")
        connect = lambda address: self._network.connect_tcp(address, port, timeout, local_address, socket_options)
        for address in addresses[:-1]:
            try:
                return await connect(address)
            except httpcore2.ConnectError:
                continue
        return await connect(addresses[-1])


def _joined(url: str, location: str) -> str:
    try:
        return urllib.parse.urljoin(url, location)
    except ValueError:
        raise _refusal("a picture's address redirects to what is no URL; name the picture's own.") from None


def _refusal(message: str) -> Refusal:
    return Refusal(400, message, "messages", "image_not_fetched")
