"""Documents name files that are there, and flags that launchers take."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent
DOCUMENTS = ["README.md", "docs/GLOSSARY.md", "docs/PLAYBOOKS.md", "docs/CHANGES.md"]
# A path with a folder of the project, as text between backquotes; NAME stands for what the reader adds.
_PATH = re.compile(r"`((?:internvl_jax|checkpoint_convert|configs|launch|cascade|demo|benchmarks|docs|tests)/[^`\s]*)`")
_LAUNCHER = re.compile(r"python -m (launch\.\w+)")


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_file_that_a_document_names_is_there(name):
    text = (ROOT / name).read_text()
    missing = [path for path in _PATH.findall(text) if not (ROOT / path.partition("NAME")[0]).exists()]
    assert not missing


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_link_between_documents_leads_somewhere(name):
    text = (ROOT / name).read_text()
    links = [link for link in re.findall(r"\]\(([^)#:]+)\)", text) if "//" not in link]
    assert not [link for link in links if not ((ROOT / name).parent / link).exists()]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_launcher_that_a_document_names_is_there(name):
    for launcher in _LAUNCHER.findall((ROOT / name).read_text()):
        assert (ROOT / (launcher.replace(".", "/") + ".py")).exists(), launcher


def test_a_missing_file_is_found():
    assert _PATH.findall("see `internvl_jax/no/such.py` and `make test`") == ["internvl_jax/no/such.py"]
