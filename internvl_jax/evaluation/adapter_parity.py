"""A model with an adapter beside a recorded reference: with it apart and, if asked, merged."""

import pathlib
from collections.abc import Iterable

import numpy as np

from checkpoint_convert import TABLES, changed_tensors, language_model, merge, read_safetensors
from internvl_jax.errors import InputError
from internvl_jax.evaluation.parity import Arrays, Report, compare
from internvl_jax.models import InternVL
from internvl_jax.validation import read_all_arrays

_MERGED = "merged_"


def compare_adapter(
    model: InternVL, directory: str | pathlib.Path, inputs: Arrays, merging: bool, chunk: int | None, page: int | None
) -> Report:
    """As `compare`, for the outputs.npz beside an adapter.

    Args:
      model: with the adapter.
      directory: of outputs.npz and, for a merged model, merged.safetensors.
      inputs: those of the base's case.
      merging: also compare the merged model with the outputs `merged_...`, and every tensor that merging changes.
      chunk, page: see `compare`.
    """
    directory = pathlib.Path(directory)
    outputs = read_all_arrays(directory / "outputs.npz", "give the folder of a recorded adapter")
    if "image_flags" in inputs:  # recorded without the tiles that are padding
        real, rest = (
            inputs["image_flags"].astype(bool),
            {name: inputs[name] for name in inputs if name != "image_flags"},
        )
        inputs = {**rest, "pixel_values": inputs["pixel_values"][real]}
    report = compare(model, inputs, _without(outputs, _MERGED), chunk, page)
    if not merging:
        return report
    plain = merge(model)
    recorded = {name.removeprefix(_MERGED): outputs[name] for name in outputs if name.startswith(_MERGED)}
    found = compare(plain, inputs, recorded, chunk, page)
    report |= {f"{_MERGED}{name}": value for name, value in found.items()}
    wanted = read_safetensors(directory / "merged.safetensors")
    ours = dict(changed_tensors(plain, model.config.lora, released_form(model, wanted)))
    report["merged_names_equal"] = ours.keys() == wanted.keys()
    for name in sorted(ours.keys() & wanted.keys()):
        report[name] = float(np.max(np.abs(ours[name].astype(np.float64) - wanted[name])))
    return report


def _without(outputs: Arrays, prefix: str) -> Arrays:
    return {name: array for name, array in outputs.items() if not name.startswith(prefix)}


def released_form(model: InternVL, tensors: Iterable[str]) -> str:
    """The released format that has tensors of these names.

    Raises:
      InputError: none has.
    """
    for (form, family), table in TABLES.items():
        names = {template for row in table.rows for template in row.templates}
        if family == language_model(model.config.text) and all(_numberless(name) in names for name in tensors):
            return form
    raise InputError("the recorded tensors are none of the released formats; give those of the case")


def _numberless(name: str) -> str:
    """As templates of rows have it: layers are `{i}`, experts `{e}`."""
    letters = {"layers": "{i}", "layer": "{i}", "experts": "{e}"}
    parts = name.split(".")
    shown = [
        letters.get(before, part) if part.isdigit() else part
        for before, part in zip(["", *parts[:-1]], parts, strict=True)
    ]
    return ".".join(shown)
