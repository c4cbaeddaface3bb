"""What the paper prints (arXiv 2508.18265): figures to stand beside ours, never ours."""

import functools
import json
import pathlib

from internvl_jax.evaluation.suites.suite import Suite
from internvl_jax.models import InternVLConfig

# Width and layers of the language model of every size.
_SIZES = {
    (1024, 28): "1B",
    (2048, 28): "2B",
    (2560, 36): "4B",
    (4096, 36): "8B",
    (5120, 40): "14B",
    (5120, 64): "38B",
    (2880, 24): "20B-A4B",
    (2048, 48): "30B-A3B",
    (4096, 94): "241B-A28B",
}


def published(suite: Suite) -> dict[str, float]:
    """The paper's figure by size of the model, of InternVL3.5 after Cascade RL; '8B + PT' is with parallel thinking. {}
    where there is none.
    """
    table, column = suite.paper
    return _tables().get(table, {}).get(column, {})


def size_name(config: InternVLConfig, parallel: bool = False) -> str | None:
    """The size that the paper calls this model by, with parallel thinking or without; None for any other."""
    name = _SIZES.get((config.text.width, config.text.layers))
    return name if name is None or not parallel else f"{name} + PT"


@functools.cache
def _tables() -> dict[str, dict[str, dict[str, float]]]:
    return json.loads((pathlib.Path(__file__).parent / "paper.json").read_text(encoding="utf-8"))
