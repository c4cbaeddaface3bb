import re

import pytest

from internvl_jax.errors import InputError
from internvl_jax.serving.dvd import greeting
from tests.serving.dvd import fake_tower


@pytest.mark.parametrize(
    ("address", "written"),
    [
        ("127.0.0.1:5600", "tcp://127.0.0.1:5600"),
        ("127.9.9.9:0", "tcp://127.9.9.9:0"),
        ("localhost:5600", "tcp://localhost:5600"),
        ("[::1]:5600", "tcp://[::1]:5600"),
        ("tcp://127.0.0.1:5600", "tcp://127.0.0.1:5600"),
        ("ipc:///tmp/vision", "ipc:///tmp/vision"),
    ],
)
def test_loopback_needs_no_secret(address, written):
    assert greeting.endpoint(address, None) == written


@pytest.mark.parametrize(
    "address", ["0.0.0.0:5600", "*:5600", "10.0.0.1:1", "[::]:1", "vision-0:1", "localhost.a:1", "127.0.0.1.a:1"]
)
def test_other_addresses_need_one(address):
    with pytest.raises(InputError, match=re.escape(f"{address} can be reached from other machines; give both sides")):
        greeting.endpoint(address, None)
    assert greeting.endpoint(address, fake_tower.SECRET).endswith(address)


@pytest.mark.parametrize(
    "address", ["", "5600", "127.0.0.1", "127.0.0.1:66000", "http://a:1", "a b:1", "ipc://", "a:1\n"]
)
def test_what_is_no_address_is_refused(address):
    with pytest.raises(InputError, match="is no address of a vision server; give HOST:PORT"):
        greeting.endpoint(address, fake_tower.SECRET)


def test_short_secrets_and_odd_fingerprints_are_refused():
    with pytest.raises(InputError, match="has 5 bytes; give at least 16"):
        fake_tower.server(fake_tower.FakeTower(fake_tower.PLAIN), secret=b"short")
    with pytest.raises(InputError, match="has 5 bytes; give at least 16"):
        fake_tower.client(fake_tower.PLAIN, "127.0.0.1:1", secret=b"short")
    for fingerprint in (b"", b"x" * 65):
        with pytest.raises(InputError, match="a fingerprint of"):
            fake_tower.client(fake_tower.PLAIN, "127.0.0.1:1", model=fingerprint)
    for addresses in ((), ("127.0.0.1:1", "tcp://127.0.0.1:1")):
        with pytest.raises(InputError, match="name at least one, and each once"):
            fake_tower.client(fake_tower.PLAIN, *addresses)


def test_proofs_tell_sides_nonces_and_fingerprints_apart():
    mine = (fake_tower.SECRET, b"a" * 32, b"b" * 32, b"model")
    proofs = [greeting.client_proof(*mine), greeting.server_proof(*mine, b"weights")]
    for at, other in enumerate((b"another secret, this", b"c" * 32, b"d" * 32, b"other")):
        changed = (*mine[:at], other, *mine[at + 1 :])
        proofs += [greeting.client_proof(*changed), greeting.server_proof(*changed, b"weights")]
    proofs.append(greeting.server_proof(*mine, b"others"))
    proofs.append(greeting.client_proof(None, *mine[1:]))
    assert len(set(proofs)) == len(proofs)
