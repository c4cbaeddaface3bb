"""A model in 8 bits beside a recorded reference: its integers and scales, and what it computes."""

import pathlib

import numpy as np

from checkpoint_convert import quantised_tensors, read_safetensors
from internvl_jax.errors import InputError
from internvl_jax.evaluation.adapter_parity import released_form
from internvl_jax.evaluation.parity import Arrays, Report, compare
from internvl_jax.models import InternViT, InternVL
from internvl_jax.validation import read_all_arrays

_VALUES, _SCALE = ".int8", ".scale"  # what the names of the reference's tensors end with


def compare_quantised(
    model: InternVL | InternViT,
    directory: str | pathlib.Path,
    inputs: Arrays,
    chunk: int | None = None,
    page: int | None = None,
    base: Arrays | None = None,
) -> Report:
    """As `compare`, for the outputs.npz and the quantized.safetensors of a directory: NAME.int8 and NAME.scale for
    every weight in 8 bits, under the names of a released format.

    Args:
      model: in 8 bits.
      inputs: those of the case that the reference was made of.
      chunk, page: see `compare`.
      base: the outputs of that case, of the model before it was rounded: see `compare`.

    Raises:
      InputError: a tower alone, or files that are missing or of another model.
    """
    if not isinstance(model, InternVL):
        raise InputError("a vision tower alone has no quantised weights; give the whole model of the case")
    directory = pathlib.Path(directory)
    outputs = read_all_arrays(directory / "outputs.npz", "give the folder of a recorded model in 8 bits")
    report = compare(model, inputs, outputs, chunk, page, base)
    wanted = read_safetensors(directory / "quantized.safetensors")
    names = [name.removesuffix(_VALUES).removesuffix(_SCALE) for name in wanted]
    ours = {
        f"{name}{suffix}": array
        for name, *arrays in quantised_tensors(model, released_form(model, names))
        for suffix, array in zip((_VALUES, _SCALE), arrays, strict=True)
    }
    report["quantized_names_equal"] = ours.keys() == wanted.keys()
    for name in sorted(ours.keys() & wanted.keys()):
        report[name] = float(np.max(np.abs(ours[name].astype(np.float64) - wanted[name])))
    return report
