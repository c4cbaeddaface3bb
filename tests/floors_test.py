"""Imports go to the same floor or down, siblings stay apart, and no chain of imports is long."""

import ast
import functools
import pathlib
from collections import Counter

import pytest

ROOT = pathlib.Path(__file__).parent.parent
TOPS = ("internvl_jax", "checkpoint_convert", "configs", "launch", "demo", "cascade", "benchmarks")
# Rooms that stand on one another, lowest first; those of one floor are siblings, and none imports another.
FLOORS = (
    {"errors"},
    {"compilation_cache", "validation"},
    {"files", "pod"},
    {"losses", "data", "grading", "sharding"},
    {"models"},
    {"inference", "checkpoint_convert"},
    {"making", "evaluation", "serving", "training"},
    {"planning"},
    {"configs"},
    {"benchmarks", "cascade", "demo"},
    {"launch"},
)
RANK = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
# Besides siblings: who does without whom although it stands higher.
APART = [{"models", "losses"}, {"models", "data"}, {"inference", "losses"}, {"serving", "losses"}]
DEPTH = 13  # modules in a chain of imports; what a package's own list leads on to is not followed
# Names that stand for the same thing wherever they are: a stage has a loss, an objective and an experiment; every room
# that is configured has a config.
PARALLEL = {"config", "mpo", "ntp", "vico"}


def modules() -> dict[str, pathlib.Path]:
    """Every module of the project by its dotted name; a package is named as its folder."""
    files = [file for top in TOPS for file in (ROOT / top).rglob("*.py")]
    dotted = lambda file: ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    return {dotted(file): file for file in files}


MODULES = modules()


def room(module: str) -> str | None:
    """The room of a module; None for the package's own public list and for what is not the project's."""
    parts = module.split(".")
    if parts[0] == "internvl_jax":
        return parts[1] if len(parts) > 1 and parts[1] in RANK else None
    return parts[0] if parts[0] in RANK else None


def imported(source: str, anywhere: bool = True) -> list[str]:
    """Dotted names that a module imports, in its functions too unless told otherwise; a name taken from a package is
    the package's unless it is a module of its own.
    """
    tree, names = ast.parse(source), []
    for node in ast.walk(tree) if anywhere else tree.body:
        if isinstance(node, ast.ImportFrom):
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            names += [name if name in MODULES else node.module or "" for name in whole]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    return names


def wrong_imports(source: str, where: str) -> list[str]:
    """Imports of `source`, a module of room `where`, that go up or sideways."""
    wrong = []
    for name in imported(source):
        to = room(name)
        if to is None or to == where:
            continue
        if RANK[to] >= RANK[where] or {where, to} in APART:
            wrong.append(name)
    return wrong


def test_every_import_goes_down():
    assert len(MODULES) > 150
    assert {name.split(".")[0] for name in MODULES} == set(TOPS)
    found = {name: wrong_imports(file.read_text(), room(name)) for name, file in MODULES.items() if room(name)}
    assert not {name: wrong for name, wrong in found.items() if wrong}


@pytest.mark.parametrize(
    ("where", "line"),
    [
        ("models", "from internvl_jax.training import run"),
        ("data", "import internvl_jax.models.config"),
        ("training", "from internvl_jax.serving import wire"),
        ("training", "from internvl_jax.making.responses import Responder"),
        ("evaluation", "def f():\n    from internvl_jax.training import train"),
        ("grading", "from internvl_jax.data import split_thinking"),
        ("checkpoint_convert", "from internvl_jax.training import step"),
        ("demo", "from cascade import recipe"),
        ("cascade", "from launch import main"),
    ],
)
def test_a_wrong_import_is_found(where, line):
    assert wrong_imports(line, where)


def roundabout(name: str, source: str) -> list[str]:
    """Modules of other rooms that module `name` takes something from without asking the room's public list."""
    listed = ("internvl_jax.errors", "configs", "launch")  # a module alone; folders of files that each stand for itself
    wrong = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.ImportFrom) or room(node.module or "") in (None, room(name)):
            continue
        if node.module not in listed and room(node.module) not in listed:
            whole = f"internvl_jax.{room(node.module)}" if node.module.startswith("internvl_jax") else room(node.module)
            wrong += [node.module] * (node.module != whole)
    return wrong


def test_rooms_meet_at_the_front_door():
    """What another room may use is listed in the `__init__` of a room, and taken from there."""
    found = {name: roundabout(name, file.read_text()) for name, file in MODULES.items()}
    assert not {name: wrong for name, wrong in found.items() if wrong}
    assert roundabout("launch.chat", "from internvl_jax.data.media import images") == ["internvl_jax.data.media"]


def test_no_chain_of_imports_is_long():
    """Nor is there a circle: a module in a circle would be deeper than itself."""
    packages = {name for name, file in MODULES.items() if file.name == "__init__.py"}

    @functools.cache
    def below(name: str) -> list[str]:
        if name in packages:
            return []
        return sorted({to for to in imported(MODULES[name].read_text(), anywhere=False) if to in MODULES})

    @functools.cache
    def chain(name: str) -> tuple[str, ...]:
        return (name, *max((chain(to) for to in below(name)), key=len, default=()))

    longest = max((chain(name) for name in MODULES), key=len)
    assert len(longest) <= DEPTH, " > ".join(longest)


def test_no_two_modules_share_a_name():
    """A name that two rooms use is a question to every reader; see PARALLEL for the ones that are none."""
    rooms = [name for name in MODULES if name.split(".")[0] in ("internvl_jax", "checkpoint_convert")]
    last = Counter(name.rpartition(".")[2] for name in rooms if MODULES[name].name != "__init__.py")
    assert {name for name, times in last.items() if times > 1} <= PARALLEL


def test_data_and_grading_do_without_jax():
    for name, file in MODULES.items():
        if room(name) in ("data", "grading"):
            assert not {each.split(".")[0] for each in imported(file.read_text())} & {"jax", "flax", "optax"}, name
