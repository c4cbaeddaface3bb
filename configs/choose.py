"""The config of a run: an experiment file, the size of a model, and fields that are set on the command line.

    choose("sft:8b", {"run.steps": "100"})

An experiment is the path of a Python file with `get_config(size)`, or the name of one of `configs/experiments`. Without
a size the model is that of `run.init_from`, and the recipe that of the size nearest to it.
"""

import dataclasses
import importlib
import importlib.util
import inspect
import pathlib
import textwrap
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

from configs.models import sizes
from internvl_jax.errors import InputError
from internvl_jax.inference import read_values
from internvl_jax.models import InternVLConfig
from internvl_jax.training import STAGES, DataConfig, LoraSettings, OptimConfig, RunConfig, TrainConfig
from internvl_jax.validation import bounds_of, describe, nearest, not_null, read_text

_EXPERIMENTS = pathlib.Path(__file__).parent / "experiments"
_SHARED = ("ntp", "vico")  # what several experiments are made of


def choose(experiment: str, fields: Mapping[str, str]) -> TrainConfig:
    """The config of `FILE:SIZE`, `FILE`, `NAME:SIZE` or `NAME`, with these fields set.

    Args:
      fields: values as texts, by dotted path.

    Raises:
      InputError: no such experiment, size or field, or a value that a field can't have.
    """
    name, _, size = experiment.partition(":")
    get_config = vars(_load(name))["get_config"]
    if size:
        config = get_config(size)
    elif start := fields.get("run.init_from"):
        config = _like_model(get_config, start)
    else:
        raise InputError(
            f"--config={experiment} has no size; write {experiment}:8b (the sizes are {', '.join(sizes.SIZES)}), or "
            "take the model of --config.run.init_from=DIR"
        )
    for path, text in fields.items():
        _set(config, path, text)
    return config


def explain() -> str:
    """Every field that can be set, with its default and meaning."""
    lines = [f"--config takes one of {', '.join(experiments())}, or a file, each with a size:", *_sizes()]
    sections = {"run": RunConfig, "data": DataConfig, "optim": OptimConfig, "lora": LoraSettings}
    for name, cls in sections.items():
        lines += ["", f"{name}: {_summary(cls)}", *_fields(name, cls)]
    for stage in STAGES.values():
        if stage.settings is not None:
            lines += ["", f"stage, where it is {stage.name}: {_summary(stage.settings)}"]
            lines += _fields("stage", stage.settings)
    return "\n".join(lines)


def experiments() -> list[str]:
    """The names of the experiments of this project."""
    return sorted(path.stem for path in _EXPERIMENTS.glob("[!_]*.py") if path.stem not in _SHARED)


def _load(name: str) -> ModuleType:
    """The module of an experiment: a file where there is one, else one of this project by name."""
    path = pathlib.Path(name)
    if path.is_file():
        spec = importlib.util.spec_from_file_location(f"experiment_{path.stem}", path)
        module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except SyntaxError as error:
            raise InputError(f"{error.filename}:{error.lineno} is no Python ({error.msg}); mend it") from None
        except ImportError as error:
            raise InputError(f"{name} can't be imported ({error}); is it on the Python path?") from error
    elif path.stem in experiments():  # also from another folder than the checkout's
        module = importlib.import_module(f"configs.experiments.{path.stem}")
    else:
        names = experiments()
        raise InputError(f"there is no experiment {name!r}{nearest(path.stem, names)}; there are {', '.join(names)}")
    if "get_config" not in vars(module):
        raise InputError(f"{name} has no function get_config(size); write one, as in configs/experiments/sft.py")
    return module


def _like_model(get_config: Any, start: str) -> TrainConfig:
    values = read_values(start)
    model = InternVLConfig.from_dict(values.get("model"))
    config = get_config(sizes.nearest_to(model))
    vision = dataclasses.replace(model.vision, drop_path=config.model.vision.drop_path)
    config.model = dataclasses.replace(model, vision=vision, flash=model.flash or config.model.flash)
    if values.get("processor"):
        config.data.template = values["processor"].get("template", config.data.template)
    return config


def _set(config: TrainConfig, path: str, text: str) -> None:
    """Sets a field by its dotted path."""
    *parents, field = path.split(".")
    section: Any = config
    for depth, name in enumerate([*parents, field]):
        names = [each.name for each in dataclasses.fields(section)]
        where = ".".join(path.split(".")[:depth])
        if name not in names:
            raise InputError(
                f"--config.{path}: {where or 'the config'} has no field {name!r}{nearest(name, names)}; "
                f"it has {', '.join(names)}"
            )
        if depth == len(parents):
            break
        section = vars(section)[name]
        if isinstance(section, InternVLConfig):
            raise InputError(f"--config.{path}: a model is chosen by its size; write an experiment file for another")
        if not dataclasses.is_dataclass(section):
            what = f"objective {config.objective!r} has no settings" if section is None else "it has no fields"
            raise InputError(f"--config.{path}: {'.'.join(parents[: depth + 1])} can't be set; {what}")
    setattr(section, field, read_text(text, bounds_of(type(section), field), f"--config.{path}"))


def _sizes() -> Iterator[str]:
    yield f"  {', '.join(name for name in sizes.SIZES if '-flash' not in name)}, with -flash behind it"
    yield "  the router too; without a size the model is that of --config.run.init_from"


def _summary(cls: type) -> str:
    return inspect.getdoc(cls).partition("\n\n")[0].replace("\n", " ").rstrip(".")


def _fields(section: str, cls: type) -> Iterator[str]:
    meanings = _meanings(cls)
    for field in dataclasses.fields(cls):
        default = "" if field.default is dataclasses.MISSING else f" (default: {_default(field.default)})"
        yield f"  --config.{section}.{field.name}: {describe(not_null(bounds_of(cls, field.name)))}{default}"
        if field.name in meanings:
            yield textwrap.fill(meanings[field.name], 100, initial_indent=" " * 6, subsequent_indent=" " * 6)


def _default(value: Any) -> str:
    return f"{len(value)} groups" if isinstance(value, tuple) else repr(value)


def _meanings(cls: type) -> dict[str, str]:
    """What the docstrings of a dataclass and of those that it stands on say of each field."""
    meanings: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        names: list[str] = []
        for line in inspect.getdoc(base).partition("Attributes:\n")[2].splitlines():
            head, colon, rest = line.strip().partition(": ")
            if line.startswith("  ") and not line.startswith("    ") and colon:
                names = head.split(", ")
                meanings |= dict.fromkeys(names, rest)
            elif names:
                meanings |= {name: f"{meanings[name]} {line.strip()}" for name in names}
    return meanings
