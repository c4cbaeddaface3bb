"""Writes docs/API.md: what every room offers others, from its `__init__` and docstrings. Nothing is imported.

python docs/make_api.py
"""

import ast
import inspect
import pathlib

ROOT = pathlib.Path(__file__).parent.parent
ROOMS = ("inference", "data", "models", "sharding", "training", "evaluation", "grading", "making", "planning", "losses")
PACKAGES = ("internvl_jax", "checkpoint_convert", *(f"internvl_jax.{room}" for room in ROOMS))
HEAD = """# Public functions and classes

Made by `make docs` from docstrings; letters in names of arrays are explained in `internvl_jax/models/__init__.py`.
"""


def page() -> str:
    """All packages, one section each."""
    return HEAD + "".join(map(_package, PACKAGES))


def public(package: str) -> list[str]:
    """The names that a package lists as its own."""
    for node in _tree(package).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "__all__":
            return ast.literal_eval(node.value)
    raise ValueError(f"{package} has no __all__; list what others may use")


def entry(package: str, name: str) -> str:
    """What is to be said of a name of a package."""
    found = _find(package, name)
    if isinstance(found, ast.Module):
        return f"### module {name}\n\n{_doc(found)}\n"
    if isinstance(found, ast.FunctionDef):
        return f"### {name}\n\n{_signature(found)}\n\n{_doc(found)}\n"
    if isinstance(found, ast.ClassDef):
        return _class(found)
    return f"### {name}\n\n```python\n{ast.unparse(found)}\n```\n"


def _package(package: str) -> str:
    entries = "\n".join(entry(package, name) for name in public(package))
    return f"\n## {package}\n\n{_doc(_tree(package))}\n\n{entries}"


def _class(node: ast.ClassDef) -> str:
    fields = [ast.unparse(each) for each in node.body if isinstance(each, ast.AnnAssign)]
    methods = [each for each in node.body if isinstance(each, ast.FunctionDef) and _is_public(each.name)]
    parts = [f"### class {node.name}", _doc(node)]
    parts += ["```python\n" + "\n".join(fields) + "\n```"] * bool(fields)
    parts += [f"{_signature(method)}\n\n{_doc(method)}" for method in methods]
    return "\n\n".join(part for part in parts if part) + "\n"


def _is_public(name: str) -> bool:
    return not name.startswith("_") or name == "__call__"


def _signature(node: ast.FunctionDef) -> str:
    returns = "" if node.returns is None else f" -> {ast.unparse(node.returns)}"
    return f"```python\n{node.name}({ast.unparse(node.args)}){returns}\n```"


def _doc(node: ast.Module | ast.ClassDef | ast.FunctionDef) -> str:
    """A docstring; its sections of arguments and the like as blocks, so that their lines stay."""
    head, *sections = inspect.cleandoc(ast.get_docstring(node) or "").split("\n\n")
    blocks = [f"```text\n{part}\n```" if part.partition("\n")[0].endswith(":") else part for part in sections]
    return "\n\n".join([head, *blocks])


def _find(module: str, name: str) -> ast.AST:
    """Where a name of a module is defined, through the modules that pass it on."""
    tree = _tree(module)
    for node in ast.walk(tree):  # the package's own front door imports within a function
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name and node in tree.body:
            if "overload" in map(ast.unparse, node.decorator_list):
                continue  # the function itself follows
            return node
        if isinstance(node, ast.ImportFrom) and any((each.asname or each.name) == name for each in node.names):
            whole = f"{node.module}.{name}"
            return _tree(whole) if _path(whole) else _find(node.module or "", name)
        if isinstance(node, ast.Assign | ast.AnnAssign) and node in tree.body:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if name in [each.id for target in targets for each in ast.walk(target) if isinstance(each, ast.Name)]:
                return node
    if module == "internvl_jax":
        return _find("internvl_jax.inference", name)
    raise ValueError(f"{module} passes on no {name}")


def _path(module: str) -> pathlib.Path | None:
    base = ROOT / module.replace(".", "/")
    return next((path for path in (base / "__init__.py", base.with_suffix(".py")) if path.exists()), None)


def _tree(module: str) -> ast.Module:
    path = _path(module)
    if path is None:
        raise ValueError(f"there is no module {module}")
    return ast.parse(path.read_text())


if __name__ == "__main__":
    (ROOT / "docs" / "API.md").write_text(page())
