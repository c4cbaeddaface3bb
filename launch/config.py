"""--config and --config.SECTION.FIELD of the launchers that take the config of a run."""

from absl import flags

from configs import choose
from internvl_jax.errors import InputError
from internvl_jax.training import TrainConfig

explain = choose.explain

_CONFIG = flags.DEFINE_string("config", None, "experiment and size, as sft:8b or configs/experiments/sft.py:8b")
_FIELDS: dict[str, str] = {}
_PREFIX = "config."


def take(argv: list[str]) -> list[str]:
    """The arguments without fields of the config, which are kept for `read`."""
    rest, argv = [], list(argv)
    while argv:
        name, equals, value = argv.pop(0).partition("=")
        path = name.lstrip("-").removeprefix(_PREFIX)
        if not name.startswith("-") or path == name.lstrip("-"):
            rest.append(name + equals + value)
        elif equals:
            _FIELDS[path] = value
        else:  # --config.data.pack, or --config.run.steps 100
            _FIELDS[path] = argv.pop(0) if argv and not argv[0].startswith("-") else "true"
    return rest


def read() -> TrainConfig | None:
    """The config that the flags describe; None without --config.

    Raises:
      InputError: no such experiment, size or field, or a value that a field can't have.
    """
    if _CONFIG.value is None:
        if _FIELDS:
            raise InputError(f"--config.{next(iter(_FIELDS))} sets a field of no config; give --config=STAGE:SIZE")
        return None
    return choose.choose(_CONFIG.value, _FIELDS)
