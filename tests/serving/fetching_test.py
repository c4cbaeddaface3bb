"""Only allowed hosts are asked, at addresses that were looked at, for so long and for so many bytes.

Names are made up: that a picture comes at all shows that the connection went where the test's resolver pointed. The
tests' hosts are on this machine, which `is_public` rightly refuses: the check that they give in its place lets through
127.0.0.1 besides.
"""

import asyncio
import contextlib
import shutil
import ssl
import subprocess
import time

import pytest

from internvl_jax.serving import fetching
from internvl_jax.serving.fetching import Fetcher, is_public
from internvl_jax.serving.limits import Limits
from internvl_jax.serving.refusals import Refusal

PICTURE = bytes(range(256)) * 40
LIMITS = Limits(image_bytes=20_000, images=1, fetch_seconds=5.0, redirects=2)
HERE = "127.0.0.1"


class Host:
    """A server that answers each path with the bytes that it is told, and notes what it was asked."""

    def __init__(self, **answers: bytes):
        self.answers, self.asked = answers, []
        self.resolved: list[str] = []
        self.names = {"pictures.test": [HERE]}
        self.port = 0
        self.tasks: list[asyncio.Task] = []

    async def serve(self, reader, writer):
        self.tasks.append(asyncio.current_task())
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            self.asked.append(head)
            answer = self.answers[head.split(" ")[1].strip("/").partition("?")[0]]
            if callable(answer):
                await answer(writer)
            else:
                writer.write(answer.replace(b"PORT", str(self.port).encode()))
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the other side has seen enough
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                await writer.wait_closed()

    async def resolve(self, host, port):
        self.resolved.append(host)
        found = self.names.get(host)
        if found is None:
            raise OSError("no such name")
        return found() if callable(found) else found


def answer(body=PICTURE, status="200 OK", length=True, **headers):
    lines = [f"HTTP/1.1 {status}", *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items())]
    lines += [f"Content-Length: {len(body)}"] * length
    return "\r\n".join([*lines, "Connection: close", "", ""]).encode() + body


def redirect(to, status="302 Found"):
    return answer(b"", status, Location=to)


def fetch(host, url, hosts=("pictures.test:PORT", "inner.test:PORT"), tls=None, server_tls=None, **options):
    """What comes of fetching a URL while the host is up; PORT stands for its port."""

    async def scene():
        server = await asyncio.start_server(host.serve, HERE, 0, ssl=server_tls)
        async with server:
            host.port = server.sockets[0].getsockname()[1]
            names = [name.replace("PORT", str(host.port)) for name in hosts]
            public = lambda address: address == HERE or is_public(address)
            options.setdefault("http", True)
            fetcher = Fetcher(names, LIMITS, resolver=host.resolve, public=public, tls=tls, **options)
            try:
                return await fetcher.fetch(url.replace("PORT", str(host.port)))
            finally:
                await asyncio.sleep(0)
                for task in host.tasks:
                    task.cancel()
                await asyncio.gather(*host.tasks, return_exceptions=True)

    return asyncio.run(scene())


def refused(host, url, says, **options):
    start = time.monotonic()
    with pytest.raises(Refusal, match=says) as error:
        fetch(host, url, **options)
    assert time.monotonic() - start < LIMITS.fetch_seconds
    assert error.value.status == 400 and len(error.value.message) < 300
    return error.value.message


URL = "http://pictures.test:PORT/a"


@pytest.mark.parametrize("url", [URL, "HTTP://PICTURES.test:PORT/a", "http://pictures.test:PORT/a?b=c&d=%20#there"])
def test_a_picture_comes_from_an_allowed_host(url):
    host = Host(a=answer())
    assert fetch(host, url) == PICTURE
    assert host.asked[0].startswith("GET /a" + ("?b=c&d=%20 " if "?" in url else " "))
    assert f"\r\nHost: pictures.test:{host.port}\r\n" in host.asked[0]
    assert "cookie" not in host.asked[0].lower() and "authorization" not in host.asked[0].lower()


def test_in_chunks_without_a_length():
    body = b"".join(
        f"{len(PICTURE[k : k + 1000]):x}\r\n".encode() + PICTURE[k : k + 1000] + b"\r\n" for k in range(0, 10240, 1000)
    )
    host = Host(a=answer(body + b"0\r\n\r\n", length=False, Transfer_Encoding="chunked"))
    assert fetch(host, URL) == PICTURE


def test_without_hosts_nothing_is_fetched():
    host = Host(a=answer())
    assert "data URLs" in refused(host, URL, "fetches no pictures", hosts=())
    assert not host.resolved and not host.asked


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://other.test:PORT/a", "not among those"),
        ("http://pictures.test/a", "not among those"),  # another port
        ("http://pictures.test.:PORT/a", "not among those"),
        ("http://a.pictures.test:PORT/a", "not among those"),
        ("http://pictures.test:PORT.evil.test/a", "no URL|not among those"),
        ("http://127.0.0.1:PORT/a", "not among those"),
        ("http://[::1]:PORT/a", "not among those"),
        ("http://0x7f000001:PORT/a", "not among those"),
        ("http:///a", "not among those"),
        ("http://user@pictures.test:PORT/a", "user or a password"),
        ("http://user:word@pictures.test:PORT/a", "user or a password"),
        ("http://pictures.test:PORT@evil.test/a", "user or a password"),
        ("http://evil.test\\@pictures.test:PORT/a", "such as no URL has"),
        ("http://pictures.test:PORT/a b", "such as no URL has"),
        ("http://pictures.test:PORT/a\r\nX: y", "such as no URL has"),
        ("http://pictures.test:PORT/\u00e9", "such as no URL has"),
        ("http://p\u0131ctures.test:PORT/a", "such as no URL has"),
        ("http://pictures.test:99999/a", "is no URL"),
        ("http://[pictures.test:PORT/a", "is no URL"),
        ("http://pictures.test:PORT/" + "a" * 5000, "over 4096"),
        ("", "such as no URL has"),
        ("file:///etc/passwd", "begins with 'file'"),
        ("ftp://pictures.test:PORT/a", "begins with 'ftp'"),
        ("gopher://pictures.test:PORT/a", "begins with 'gopher'"),
        ("//pictures.test:PORT/a", "begins with ''"),
        ("pictures.test:PORT/a", "begins with 'pictures.test'"),
    ],
)  # fmt: skip
def test_an_address_that_is_not_allowed_is_never_looked_up(url, says):
    host = Host(a=answer())
    refused(host, url, says)
    assert not host.resolved and not host.asked


def test_plain_http_is_by_choice():
    host = Host(a=answer())
    refused(host, URL, "use https", http=False)
    assert not host.resolved


PRIVATE = [
    *("127.0.0.2", "10.0.0.1", "172.16.9.9", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1"),
    *("255.255.255.255", "198.18.0.1", "192.0.2.7", "240.0.0.1", "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1"),
    *("fd00:ec2::254", "ff02::1", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "::ffff:a9fe:a9fe", "::7f00:1", "2001:db8::1"),
    *("64:ff9b::7f00:1", "64:ff9b:1::1", "2002:7f00:1::", "2001:0:1::1", "not an address", "127.1", "0x7f.1", ""),
]


@pytest.mark.parametrize("address", PRIVATE)
def test_an_address_that_is_not_public_is_not_connected_to(address):
    assert not is_public(address)
    host = Host(a=answer())
    host.names["pictures.test"] = [address]
    refused(host, URL, "not public")
    host.names["pictures.test"] = [HERE, address]  # one of several is enough
    refused(host, URL, "not public")
    assert not host.asked


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700:4700::1111", "1.1.1.1"])
def test_the_internets_addresses_are_public(address):
    assert is_public(address)


def test_the_real_resolver_finds_this_machine_and_is_refused():
    """Nothing injected but the name: localhost."""
    host = Host(a=answer())
    with pytest.raises(Refusal, match="not public"):
        asyncio.run(Fetcher(["localhost:9"], LIMITS, http=True).fetch("http://localhost:9/a"))
    assert set(asyncio.run(fetching.resolve("localhost", 9))) <= {"127.0.0.1", "::1"}
    assert not host.asked


def test_a_name_that_changes_its_address_gains_nothing():
    """DNS rebinding: a name is resolved once a connection, and the connection goes to what was looked at."""
    answers = iter([[HERE], ["10.0.0.5"], ["10.0.0.5"]])
    host = Host(a=answer())
    host.names["pictures.test"] = lambda: next(answers)
    assert fetch(host, URL) == PICTURE
    assert host.resolved == ["pictures.test"]
    # Within one fetch: the redirect to the same host is looked up, and looked at, again.
    answers = iter([[HERE], ["10.0.0.5"]])
    host = Host(a=redirect("/b"), b=answer())
    host.names["pictures.test"] = lambda: next(answers)
    refused(host, URL, "not public")
    assert len(host.asked) == 1


def test_a_dead_address_is_passed_over():
    host = Host(a=answer())
    host.names["pictures.test"] = [HERE, HERE]
    real = fetching.httpcore2.AnyIOBackend.connect_tcp
    tried = []

    async def first_fails(self, address, *options):
        tried.append(address)
        if len(tried) == 1:
            raise fetching.httpcore2.ConnectError
        return await real(self, address, *options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fetching.httpcore2.AnyIOBackend, "connect_tcp", first_fails)
        assert fetch(host, URL) == PICTURE
    assert tried == [HERE, HERE]


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See Other", "307 Temporary", "308 Permanent"])
@pytest.mark.parametrize("to", ["/b", "b", "http://pictures.test:PORT/b", "//pictures.test:PORT/b"])
def test_redirects_are_followed(to, status):
    host = Host(a=redirect(to, status), b=answer())
    assert fetch(host, URL) == PICTURE
    assert len(host.asked) == 2


@pytest.mark.parametrize(
    ("to", "says"),
    [
        ("http://inner.test:PORT/b", "not public"),
        ("http://127.0.0.1:PORT/b", "not among those"),
        ("http://169.254.169.254/latest/meta-data", "not among those"),
        ("http://evil.test/b", "not among those"),
        ("http://user@pictures.test:PORT/b", "user or a password"),
        ("file:///etc/passwd", "begins with 'file'"),
        ("data:image/png;base64,AAAA", "begins with 'data'"),
        ("/a", "redirects more than 2 times"),
        ("http://[nowhere.test/b", "is no URL"),
        ("http://pictures.test:PORT/\u00e9", "such as no URL has"),
        ("http://unknown.test:PORT/b", "could not be had from unknown.test"),
    ],
)
def test_every_redirect_is_checked_again(to, says):
    host = Host(a=redirect(to), b=answer())
    host.names["inner.test"] = ["10.1.2.3"]
    refused(host, URL, says, hosts=("pictures.test:PORT", "inner.test:PORT", "unknown.test:PORT"))
    assert all(head.startswith("GET /a ") for head in host.asked)
    assert len(host.asked) == (3 if to == "/a" else 1)


def test_sizes_are_bounded():
    host = Host(a=answer(b"", length=False, Content_Length=10**12))
    refused(host, URL, "at least 1000000000000 bytes.* 20000")

    async def endless(writer):
        writer.write(answer(b"", length=False))
        for _ in range(10_000):
            writer.write(bytes(10_000))
            await writer.drain()

    host = Host(a=endless)
    refused(host, URL, r"at least \d{5} bytes.* 20000")
    assert fetch(Host(a=answer(bytes(20_000))), URL) == bytes(20_000)
    refused(Host(a=answer(bytes(20_001))), URL, "20001 bytes")


@pytest.mark.parametrize("part", ["head", "body", "silence"])
def test_a_slow_host_is_given_up(part, monkeypatch):
    """Each byte comes in time, all of them don't."""
    limits = Limits(image_bytes=20_000, images=1, fetch_seconds=0.4)
    monkeypatch.setitem(globals(), "LIMITS", limits)
    whole = answer(PICTURE)

    async def drip(writer):
        at = 5 if part == "head" else len(whole) - len(PICTURE)
        writer.write(whole[: 0 if part == "silence" else at])
        for byte in [] if part == "silence" else whole[at:]:
            await writer.drain()
            await asyncio.sleep(0.05)
            writer.write(bytes([byte]))
        await asyncio.sleep(30)

    start = time.monotonic()
    with pytest.raises(Refusal, match=r"longer than 0\.4 s"):
        fetch(Host(a=drip), URL)
    assert time.monotonic() - start < 3


@pytest.mark.parametrize(
    ("said", "says"),
    [
        (answer(b"", "404 Not Found"), "with 404"),
        (answer(b"", "500 Oops"), "with 500"),
        (answer(b"", "302 Found"), "with 302"),  # without a place
        (answer(b"", "204 No Content", length=False), "with 204"),
        (answer(Content_Encoding="gzip"), "packed"),
        (answer()[:-10], "could not be had"),
        (b"", "could not be had"),
        (b"this is no HTTP\r\n\r\n", "could not be had"),
        (answer(Content_Length="-5", length=False), "could not be had"),
        (answer(X="y" * 200_000), "could not be had"),
    ],
)
def test_a_host_that_answers_wrongly_is_told(said, says):
    refused(Host(a=said), URL, says)


def test_no_message_repeats_an_address():
    secret = "s3cret" * 20
    for url in (
        f"http://{secret}.test/a",
        f"http://pictures.test:PORT/{secret}",
        f"{secret}://x",
        f"http://{secret}@x/",
    ):
        told = refused(Host(**{secret: answer(b"", "404 No")}), url, "picture|host")
        assert secret[:41] not in told


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """TLS of pictures.test for a server, and the trust in it for a client."""
    folder = tmp_path_factory.mktemp("tls")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    names = ["-subj", "/CN=pictures.test", "-addext", "subjectAltName=DNS:pictures.test", "-days", "2"]
    files = ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")]
    subprocess.run([*command, *names, *files], check=True, capture_output=True)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return server, ssl.create_default_context(cafile=folder / "cert.pem")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="certificates are made by openssl")
def test_tls_holds_the_certificate_against_the_name(certificates):
    server, trusting = certificates
    secure = URL.replace("http", "https")
    options = {"server_tls": server, "http": False}
    assert fetch(Host(a=answer()), secure, tls=trusting, **options) == PICTURE
    refused(Host(a=answer()), secure, "could not be had", tls=None, **options)  # nobody vouches for it
    host = Host(a=answer())
    host.names["inner.test"] = [HERE]
    refused(host, secure.replace("pictures", "inner"), "could not be had", tls=trusting, **options)
    assert not host.asked
