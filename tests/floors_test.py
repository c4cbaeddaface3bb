"""Imports go to the same floor or down; leaves and siblings stay apart."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
RANK = {
    "errors": -1,
    "data": 0,
    "losses": 0,
    "grading": 0,
    "sharding": 0,
    "models": 1,
    "inference": 2,
    "training": 3,
    "serving": 3,
    "checkpoint_convert": 2,
    "planning": 4,
    "launch": 5,
    "configs": 5,
}
APART = [
    {"models", "losses"},
    {"models", "data"},
    {"losses", "data"},
    {"losses", "sharding"},
    {"data", "sharding"},
    {"grading", "data"},
    {"grading", "losses"},
    {"grading", "sharding"},
    {"inference", "losses"},
    {"serving", "losses"},
    {"training", "serving"},
    {"checkpoint_convert", "inference"},
]


def room(module: str) -> str | None:
    parts = module.split(".")
    if parts[0] == "internvl_jax":
        return parts[1] if len(parts) > 1 and parts[1] in RANK else None
    return parts[0] if parts[0] in RANK else None


def wrong_imports(source: str, where: str) -> list[str]:
    """Imports of `source`, a module of room `where`, that go up or sideways."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            names.append(node.module or "")
        elif isinstance(node, ast.Import):
            names.extend(alias.name for alias in node.names)
    rooms = [(name, room(name)) for name in names]
    return [name for name, to in rooms if to is not None and (RANK[to] > RANK[where] or {where, to} in APART)]


def test_every_import_goes_down():
    wrong = {}
    for top in ("internvl_jax", "checkpoint_convert", "launch", "configs"):
        for file in (ROOT / top).rglob("*.py"):
            module = ".".join(file.relative_to(ROOT).with_suffix("").parts)
            where = room(module)
            if where is None:  # the package's own public list
                continue
            if names := wrong_imports(file.read_text(), where):
                wrong[str(file.relative_to(ROOT))] = names
    assert not wrong


@pytest.mark.parametrize(
    ("where", "line"),
    [
        ("models", "from internvl_jax.training import loop"),
        ("data", "import internvl_jax.models.config"),
        ("training", "from internvl_jax.serving import wire"),
        ("grading", "from internvl_jax.data import split_thinking"),
        ("checkpoint_convert", "from internvl_jax.training import step"),
    ],
)
def test_a_wrong_import_is_found(where, line):
    assert wrong_imports(line, where)


def test_data_and_grading_do_without_jax():
    for top in ("data", "grading"):
        for file in (ROOT / "internvl_jax" / top).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                module = node.module if isinstance(node, ast.ImportFrom) else None
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [module or ""]
                assert not any(name.split(".")[0] in ("jax", "flax", "optax") for name in names), file
