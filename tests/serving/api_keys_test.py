"""Keys come from a file or the environment, and only they open a server that other machines reach."""

import pytest

from internvl_jax.errors import InputError
from internvl_jax.serving import api_keys
from internvl_jax.serving.api_keys import ApiKeys

KEY, OTHER = "sk-0123456789abcdef", "sk-another-key-for-b"


@pytest.fixture
def keys(tmp_path, monkeypatch):
    monkeypatch.setenv("INTERNVL_API_KEY", OTHER)
    (tmp_path / "keys").write_text(f"# those of team A\n\n  {KEY}  \r\n{OTHER}\n")
    return ApiKeys.load(tmp_path / "keys")


@pytest.mark.parametrize("header", [f"Bearer {KEY}", f"bearer  {KEY} ", f"Bearer {OTHER}"])
def test_a_key_opens(keys, header):
    assert keys.allows(header)


@pytest.mark.parametrize(
    "header",
    [
        *(None, "", "Bearer", "Bearer ", KEY, f"Basic {KEY}", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", "Bearer \udc80é"),
        *(f"Bearer {KEY} {OTHER}", f"Bearer {KEY.upper()}", "Bearer # those of team A", f"Bearer\t{KEY}"),
    ],
)
def test_nothing_else_opens(keys, header):
    assert not keys.allows(header)


def test_without_keys_everybody_may_ask(monkeypatch):
    monkeypatch.delenv("INTERNVL_API_KEY", raising=False)
    assert ApiKeys.load().allows(None) and ApiKeys.load().allows("Bearer anything")


def test_a_key_is_never_printed(keys):
    assert len(keys.digests) == 2
    assert KEY not in repr(keys) and OTHER not in repr(keys)


def test_every_key_is_compared_as_digests_in_constant_time(keys, monkeypatch):
    compared = []
    real = api_keys.hmac.compare_digest
    monkeypatch.setattr(api_keys.hmac, "compare_digest", lambda a, b: compared.append((a, b)) or real(a, b))
    assert keys.allows(f"Bearer {OTHER}") and keys.allows(f"Bearer {KEY}") and not keys.allows("x")
    assert len(compared) == 3 * len(keys.digests)
    assert {len(each) for pair in compared for each in pair} == {32}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "has no key"),
        ("# only this\n", "has no key"),
        ("short\n", "5 characters"),
        ("two words in a key\n", "spaces"),
        ("schlüssel-schlüssel\n", "ASCII"),
    ],
)
def test_a_bad_file_is_refused(tmp_path, monkeypatch, text, says):
    monkeypatch.delenv("INTERNVL_API_KEY", raising=False)
    (tmp_path / "keys").write_text(text)
    with pytest.raises(InputError, match=says) as error:
        ApiKeys.load(tmp_path / "keys")
    assert "words" not in str(error.value) and "schl" not in str(error.value)


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(InputError, match="is not there"):
        ApiKeys.load(tmp_path / "keys")
    (tmp_path / "keys").write_bytes(b"\xff\xfe" * 20)
    with pytest.raises(InputError, match="UTF-8"):
        ApiKeys.load(tmp_path / "keys")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "localhost", "LOCALHOST", "::1", "[::1]"])
def test_loopback_needs_no_key(host):
    assert not api_keys.required(host)
    ApiKeys(()).check_host(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "", "::", "10.0.0.1", "192.168.1.5", "example.org", "::ffff:127.0.0.1"])
def test_any_other_address_needs_one(keys, host):
    assert api_keys.required(host)
    keys.check_host(host)
    with pytest.raises(InputError, match="without an API key"):
        ApiKeys(()).check_host(host)
