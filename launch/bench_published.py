"""The planner's estimate beside published speeds on TPUs: compiles the shapes of the models that were measured.

  python -m launch.bench_published --page=docs/PUBLISHED.md [--only=Llama-3.1-8B]

Needs libtpu (pip install 'internvl_jax[tpu]') and minutes a model; what the JSON file beside the page has is not
planned again. The last line of stdout is JSON: by how much each estimated MFU is off.
"""

import json
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # nothing runs on an accelerator, one that is there stays free

from absl import flags

from benchmarks import published
from launch import assumptions, main

_PAGE = flags.DEFINE_string("page", "docs/PUBLISHED.md", "the file to write, with a JSON file of its plans beside it")
_ONLY = flags.DEFINE_list("only", list(published.MEASURED), "the models to plan")


def _main(argv: list[str]) -> None:
    print(json.dumps(published.write(_PAGE.value, _ONLY.value, assumptions.assumed())))


if __name__ == "__main__":
    main.run(_main)
