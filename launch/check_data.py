"""Checks a meta file before a run: images, placeholders, lengths, packing; shows samples as the model will see them.

python -m launch.check_data --meta=my_data.json --checkpoint=DIR

Prints a histogram of tokens, rendered samples (what the loss asks for stands between >>> and <<<) and all problems
with file and line. The last line of stdout is a JSON summary. Exit code 1 if there is any problem.
"""

import dataclasses
import json
from typing import Any

from absl import flags

from checkpoint_convert import load_processor
from internvl_jax.data import Processor, Tokenizer, check, get_template, packing, tiling
from internvl_jax.validation import read_json
from launch import hub
from launch import main as launcher

_META = flags.DEFINE_string("meta", None, "meta file (JSON) that lists the data sets", required=True)
_TEMPLATE = flags.DEFINE_string("template", "internvl2_5", "chat template, where only a tokenizer is given")
_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "model directory: its tokenizer, template and tile options")
_TOKENIZER = flags.DEFINE_string("tokenizer", None, "instead: directory of tokenizer files; tile options as released")
flags.mark_flags_as_mutual_exclusive(["checkpoint", "tokenizer"], required=True)
_TILE_OPTIONS = {
    "tile_size": flags.DEFINE_integer("tile_size", None, "pixels per side of a tile, if not as in the model"),
    "tokens_per_tile": flags.DEFINE_integer("tokens_per_tile", None, "image tokens of a tile, likewise"),
    "max_tiles": flags.DEFINE_integer("max_tiles", None, "most tiles of an image, likewise"),
    "thumbnail": flags.DEFINE_boolean("thumbnail", None, "whether several tiles get a thumbnail, likewise"),
}
_TOKEN_BUDGET = flags.DEFINE_integer("token_budget", 32768, "tokens of a packed row", lower_bound=1)
_TILE_BUDGET = flags.DEFINE_integer("tile_budget", 96, "tiles of a packed row", lower_bound=0)
_MAX_OPEN = flags.DEFINE_integer("max_open", 20, "packs that stay open while packing", lower_bound=1)
_DECODE = flags.DEFINE_boolean("decode", False, "decode every image: finds truncated ones, takes far longer")
_OUTSIDE = flags.DEFINE_boolean("allow_outside_root", False, "images may lie outside of their data set's root")
_RENDER = flags.DEFINE_integer("render", 5, "samples to show", lower_bound=0)
_SHOW = flags.DEFINE_integer("show_problems", 100, "problems to list", lower_bound=0)


def _processor() -> Processor:
    if _TOKENIZER.value:
        image = tiling.ImageConfig(448, 256, 1, 12, True, False, tiling.DEFAULT_MAX_PIXELS)
        made = Processor(image, Tokenizer.load(_TOKENIZER.value), get_template(_TEMPLATE.value))
    else:
        directory = hub.directory(_CHECKPOINT.value)
        config = read_json(directory / "config.json", "give a model directory with --checkpoint")
        if "processor" in config:
            made = Processor.from_dict(config["processor"], directory)
        else:
            made = load_processor(directory)
    given: dict[str, Any] = {name: flag.value for name, flag in _TILE_OPTIONS.items() if flag.value is not None}
    return dataclasses.replace(made, image_config=dataclasses.replace(made.image_config, **given))


def main(argv: list[str]) -> int:
    del argv
    budgets = packing.PackingConfig(_TOKEN_BUDGET.value, _TILE_BUDGET.value, _MAX_OPEN.value)
    options: dict[str, Any] = {"decode": _DECODE.value, "render": _RENDER.value, "allow_outside_root": _OUTSIDE.value}
    report = check.check(_META.value, _processor(), budgets, **options)
    print(report.text(_SHOW.value))
    print(json.dumps(report.summary()))
    return 1 if report.problems else 0


if __name__ == "__main__":
    launcher.run(main)
