"""Documents name files that are there, flags that launchers take, and all that servers take and tell."""

import dataclasses
import pathlib
import re
import runpy

import pytest

from internvl_jax.serving import Limits
from internvl_jax.serving.schema import ChatRequest, CompletionRequest
from internvl_jax.training import DataConfig, RunConfig

SECTIONS = {"run": RunConfig, "data": DataConfig}
ROOT = pathlib.Path(__file__).parent.parent
DOCUMENTS = [
    *("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"),
    *("docs/GLOSSARY.md", "docs/PLAYBOOKS.md", "docs/CHANGES.md", "docs/TROUBLESHOOTING.md", "docs/SUPPORTED.md"),
    *("docs/SERVING.md", "docs/DEPLOY.md", "docs/VIDEO.md", "docs/GROUNDING.md", "docs/EVALUATION.md"),
    *("docs/LORA.md", "docs/QUANTISATION.md", "docs/BEST_OF_N.md", "docs/MOE.md", "docs/pods/README.md"),
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


@pytest.mark.parametrize("file", sorted((ROOT / "docs" / "deploy").iterdir()), ids=lambda file: file.name)
def test_every_flag_of_a_deployment_is_there(file):
    known = set().union(*(flags_of(file) for file in (ROOT / "launch").glob("*.py")))
    assert not set(re.findall(r"(?<!\S)--([a-z_]+)=", file.read_text())) - known


@pytest.mark.parametrize("file", sorted((ROOT / "docs" / "pods").glob("*.[!m]*")), ids=lambda file: file.name)
def test_every_flag_and_field_of_a_recipe_is_there(file):
    known = set().union(*(flags_of(file) for file in (ROOT / "launch").glob("*.py")))
    command = file.read_text().rpartition("launch.train")[2]
    assert not set(re.findall(r"--([a-z_]+)=", command)) - known
    fields = {f"{name}.{field.name}" for name, cls in SECTIONS.items() for field in dataclasses.fields(cls)}
    named = set(re.findall(r"--config\.([\w.]+)=", file.read_text()))
    assert named <= fields and {"run.workdir", "run.init_from", "data.meta"} <= named


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


SERVING = (ROOT / "docs" / "SERVING.md").read_text()


@pytest.mark.parametrize("request_type", [ChatRequest, CompletionRequest])
def test_every_field_of_the_api_is_told(request_type):
    missing = [name for name in request_type.model_fields if not re.search(rf"`[^`]*\b{name}\b[^`]*`", SERVING)]
    assert not missing


def test_every_limit_of_a_server_is_told_with_its_value():
    told = dict(re.findall(r"^\| `(\w+)` \| ([\d.]+) \|", SERVING, re.MULTILINE))
    assert {name: float(value) for name, value in told.items()} == {
        field.name: field.default for field in dataclasses.fields(Limits)
    }


def test_every_metric_of_a_server_is_told():
    files = (ROOT / "internvl_jax" / "serving").glob("*.py")
    made = {
        name
        for file in files
        for name in re.findall(r"\b(?:counter|count|gauge|histogram)\(\s*\"(\w+)\"", file.read_text())
    }
    assert len(made) > 40 and not {name for name in made if f"`{name}`" not in SERVING}
