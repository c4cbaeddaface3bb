"""Checkpoints named as on the Hub are fetched only where the user asks for it."""

import sys
import types

import pytest
from absl import flags

from internvl_jax.errors import InputError
from launch import hub

NAME = "OpenGVLab/InternVL3_5-1B"


@pytest.fixture
def download(monkeypatch):
    if not flags.FLAGS.is_parsed():
        flags.FLAGS(["test"])
    monkeypatch.setattr(hub, "_DOWNLOAD", types.SimpleNamespace(value=True))


@pytest.fixture
def client(monkeypatch):
    """A stand-in for huggingface_hub; this test may not reach the network."""
    library, errors = types.ModuleType("huggingface_hub"), types.ModuleType("huggingface_hub.errors")
    errors.HfHubHTTPError = type("HfHubHTTPError", (Exception,), {})
    monkeypatch.setitem(sys.modules, "huggingface_hub", library)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", errors)
    return library


def test_without_the_flag_the_command_is_told(monkeypatch):
    monkeypatch.setattr(hub, "_DOWNLOAD", types.SimpleNamespace(value=False))
    with pytest.raises(InputError, match=f"`hf download {NAME} --local-dir=InternVL3_5-1B`, or add --download"):
        hub.directory(NAME)


def test_a_directory_or_a_path_with_a_typo_is_no_name(download, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "1b").mkdir(parents=True)
    assert str(hub.directory("models/1b")) == "models/1b" and str(hub.directory("models/1c")) == "models/1c"


def test_with_the_flag_it_is_fetched(download, client, tmp_path):
    asked = []
    client.snapshot_download = lambda name: asked.append(name) or str(tmp_path)
    assert hub.directory(NAME) == tmp_path and asked == [NAME]


def test_what_goes_wrong_is_one_sentence(download, client, monkeypatch):
    def refuse(name):
        raise sys.modules["huggingface_hub.errors"].HfHubHTTPError("404 Client Error")

    client.snapshot_download = refuse
    with pytest.raises(InputError, match="could not be fetched"):
        hub.directory(NAME)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match="needs the library huggingface_hub"):
        hub.directory(NAME)
