"""Documents name files that are there, and flags that launchers take."""

import pathlib
import re
import runpy

import pytest

ROOT = pathlib.Path(__file__).parent.parent
DOCUMENTS = [
    *("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"),
    *("docs/GLOSSARY.md", "docs/PLAYBOOKS.md", "docs/CHANGES.md", "docs/TROUBLESHOOTING.md", "docs/SUPPORTED.md"),
]
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


# An installed command or a launcher, with the flags that follow on its line and those that go on from it.
_COMMAND = re.compile(r"(?:python -m launch\.|internvl-)([\w-]+)((?:[^\n`]|\\\n)*)")
_FLAG = re.compile(r"--(?:no)?([a-z_]+)")


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_flag_that_a_document_names_is_there(name):
    known = set().union(*(flags_of(file) for file in (ROOT / "launch").glob("*.py")))
    for launcher, rest in _COMMAND.findall((ROOT / name).read_text()):
        assert not set(_FLAG.findall(rest)) - known, launcher


def flags_of(file):
    """The names of the flags that a launcher's file defines."""
    return set(re.findall(r"DEFINE_\w+\(\s*\"(\w+)\"", file.read_text())) | {"config", "help"}


def test_the_api_page_has_every_public_name():
    make_api = runpy.run_path(str(ROOT / "docs" / "make_api.py"))
    page = make_api["page"]()
    names = [(package, name) for package in make_api["PACKAGES"] for name in make_api["public"](package)]
    assert len(names) > 180 and page.count("\n### ") == len(names)
    assert "### load_released\n\n```python\nload_released(directory: str | pathlib.Path, dtype" in page
    with pytest.raises(ValueError, match="passes on no nothing"):
        make_api["entry"]("internvl_jax.data", "nothing")


def test_a_missing_file_is_found():
    assert _PATH.findall("see `internvl_jax/no/such.py` and `make test`") == ["internvl_jax/no/such.py"]
