"""Models with adapters: of a base in any format and an adapter in any form, with it apart or merged."""

import dataclasses
import pathlib
from collections.abc import Iterator

import jax
import numpy as np
from jax.sharding import Mesh

from checkpoint_convert.adapters import Adapter, attached, check_plain
from checkpoint_convert.hf_config import language_model
from checkpoint_convert.peft_config import FILE
from checkpoint_convert.peft_reader import read_adapter
from checkpoint_convert.released import load_bare
from checkpoint_convert.rows import to_released
from checkpoint_convert.structures import structure_of
from checkpoint_convert.tables import TABLES
from internvl_jax.errors import InputError
from internvl_jax.models import InternVL, LoraConfig, merged
from internvl_jax.sharding import Rules, bind, flatten, places


def load_adapted(
    directory: str | pathlib.Path,
    adapter: str | pathlib.Path,
    dtype: str,
    image_token_id: int | None,
    mesh: Mesh | None = None,
    rules: Rules | str | None = None,
) -> InternVL:
    """A model with an adapter, as `released.load_bare` otherwise.

    Args:
      directory: the base's, in any format.
      adapter: the folder of a PEFT adapter; or of a whole checkpoint with adapters wrapped in, whose own weights are
        the base then.

    Raises:
      InputError: see `load_bare` and `read_adapter`; a base that has an adapter itself.
    """
    adapter = pathlib.Path(adapter)
    if not (adapter / FILE).exists() and (adapter / "config.json").exists():
        model = load_bare(adapter, dtype, image_token_id, mesh, rules)
        if not isinstance(model, InternVL) or model.config.lora is None:
            raise InputError(
                f"{adapter} holds no adapter: neither {FILE} nor weights with adapters; give one that does"
            )
        return model
    model = load_bare(directory, dtype, image_token_id, mesh, rules)
    if not isinstance(model, InternVL):
        raise InputError(f"{directory} is a vision tower alone, which adapters are not read for; give a whole model")
    return attach(model, read_adapter(adapter, model.config))


def attach(model: InternVL, adapter: Adapter) -> InternVL:
    """The model with an adapter beside its weights, which both then have.

    Raises:
      InputError: it has one already.
    """
    check_plain(model.config.lora)
    config = dataclasses.replace(model.config, lora=adapter.lora)
    graphdef, specs = structure_of(config, model.runtime)
    where = places(specs, model.runtime.placement)
    return bind(graphdef, attached(flatten(model), adapter, where, model.runtime.dtype))


def merge(model: InternVL) -> InternVL:
    """The same model without adapter, the weights being what they were with it."""
    config = dataclasses.replace(model.config, lora=None)
    graphdef, specs = structure_of(config, model.runtime)
    where = places(specs, model.runtime.placement)
    params = merged(flatten(model), model.config)
    return bind(graphdef, {path: jax.device_put(params[path], place) for path, place in where.items()})


def changed_tensors(model: InternVL, lora: LoraConfig, form: str) -> Iterator[tuple[str, np.ndarray]]:
    """What merging changed, under the names of a released format.

    Args:
      model: as `merge` gave it.
      lora: the adapter that was merged.
    """
    changed = {*(f"{weight.path}.weight" for weight in lora.weights), *lora.whole}
    params = {path: np.asarray(value) for path, value in flatten(model).items() if path in changed}
    return to_released(TABLES[form, language_model(model.config.text)].rows, params)
