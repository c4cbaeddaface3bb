"""The flags of a pod, and the variables that stand in for them."""

import pytest
from absl import flags
from absl.testing import flagsaver

from internvl_jax.errors import InputError
from internvl_jax.pod import place
from launch import pod


@pytest.fixture(autouse=True)
def parsed(monkeypatch):
    """Flags as a launcher finds them; a `Pod` is what it would be made of."""
    for name in ("COORDINATOR", "PROCESSES", "PROCESS"):
        monkeypatch.delenv(f"INTERNVL_JAX_{name}", raising=False)
    monkeypatch.setattr(pod, "Pod", lambda *args, **named: (*args, *named.values()))
    with flagsaver.flagsaver():
        flags.FLAGS(["launcher"])
        yield


def test_one_process_unless_told():
    assert pod.joined() == (True,)


def test_flags_and_variables(monkeypatch):
    monkeypatch.setenv("INTERNVL_JAX_COORDINATOR", "host:80")
    monkeypatch.setenv("INTERNVL_JAX_PROCESSES", "4")
    with pytest.raises(InputError, match="--process missing; a pod needs --coordinator=HOST:PORT"):
        pod.joined()
    monkeypatch.setenv("INTERNVL_JAX_PROCESS", "0")
    assert pod.joined() == (place.Place("host", 80, 4, 0), 300, 60, True)
    with flagsaver.flagsaver(process=3, start_limit=9, heartbeat_limit=20):  # before variables, 0 too
        assert pod.joined(saved=False) == (place.Place("host", 80, 4, 3), 9, 20, False)
    monkeypatch.setenv("INTERNVL_JAX_PROCESS", "first")
    with pytest.raises(InputError, match="INTERNVL_JAX_PROCESS is 'first'; it must be a whole number"):
        pod.joined()


def test_what_jax_finds(monkeypatch):
    monkeypatch.setattr(place, "found", lambda *args, **named: (*args, *named.values()))
    with flagsaver.flagsaver(distributed="auto", processes=8):
        assert pod.joined() == ((None, 8, None, 300), 300, 60, True)
