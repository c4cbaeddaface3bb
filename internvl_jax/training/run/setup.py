"""Before the first step: what a run is given, checked against each other, and its workdir."""

import copy
import dataclasses
import json
import logging
import os
import pathlib
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from internvl_jax.data.media.tiling import DEFAULT_MAX_PIXELS, ImageConfig
from internvl_jax.data.processor import Processor
from internvl_jax.data.rows.pipeline import PipelineConfig
from internvl_jax.data.text.templates import get_template
from internvl_jax.data.text.tokenizer import Tokenizer
from internvl_jax.errors import InputError
from internvl_jax.models import FLASH_PARTS
from internvl_jax.sharding.flat import Params
from internvl_jax.sharding.params_io import locate, read_params
from internvl_jax.training.config import GspoConfig, MpoConfig, TrainConfig, check, differences, identity

RUN_CONFIG = "run.json"
_LOG = logging.getLogger(__name__)


def prepare(config: TrainConfig) -> tuple[TrainConfig, Processor]:
    """A checked copy of the config, its model fitted to the tokenizer, and the processor of the run."""
    check(config)
    config = copy.deepcopy(config)
    data, model = config.data, config.model
    tokenizer = Tokenizer.load(data.tokenizer or config.run.init_from)
    if tokenizer.vocab_size > model.text.vocab:
        raise InputError(
            f"the tokenizer in {data.tokenizer or config.run.init_from} has {tokenizer.vocab_size} tokens but the "
            f"model only {model.text.vocab} rows; give the tokenizer that belongs to the model"
        )
    # The id is the tokenizer's to say: it differs between families.
    config.model = dataclasses.replace(model, image_token_id=tokenizer.image_context)
    image = ImageConfig(
        tile_size=model.vision.image_size,
        tokens_per_tile=model.tokens_per_tile,
        min_tiles=data.min_tiles,
        max_tiles=data.max_tiles,
        thumbnail=data.thumbnail,
        apply_exif=False,
        max_pixels=DEFAULT_MAX_PIXELS,
    )
    return config, Processor(image, tokenizer, get_template(data.template))


def describe(config: TrainConfig, mesh: Mesh) -> list[str]:
    """Every setting of a run as it was resolved, a section a line, and what follows from them: the size of a step, of
    a rollout batch, of the run; of the model what decides its size.
    """
    run, data, stage = config.run, config.data, config.stage
    sections = {name: getattr(config, name) for name in ("stage", "data", "optim", "run")}
    lines = [f"objective: {config.objective}"]
    for name, section in sections.items():
        if section is not None:
            values = "  ".join(f"{field}={value!r}" for field, value in vars(section).items())
            lines.append(f"{name}: {values}")
    vision, text = config.model.vision, config.model.text
    sizes = f"vision {vision.layers} x {vision.width}, language {text.layers} x {text.width}, {text.family}"
    axes = ", ".join(f"{axis}={size}" for axis, size in mesh.shape.items() if size > 1) or "one device"
    step = f"step: {run.rows} rows of {data.token_budget} tokens in {run.micro_batches} micro-batches, on {axes}"
    tokens = (
        f"at most {run.rows * data.token_budget:,} tokens a step, {run.steps * run.rows * data.token_budget:,} in all"
    )
    lines += [f"model: {sizes}", f"{step}; {tokens}"]
    if isinstance(stage, GspoConfig):
        responses, steps = stage.prompts * stage.group, stage.prompts // stage.mini_batch
        lines.append(f"rollouts: {responses:,} responses a batch, used up in {steps} steps of {responses // steps:,}")
    elif isinstance(stage, MpoConfig):
        lines.append(f"pairs: {stage.pairs:,} a step, {run.steps * stage.pairs:,} in all")
    if stage is not None:
        lines.append(f"reference: {stage.reference or run.init_from}")
    return lines


def pipeline_config(config: TrainConfig, kind: str = "conversations") -> PipelineConfig:
    data = config.data
    return PipelineConfig(
        meta=data.meta,
        kind=kind,
        token_budget=data.token_budget,
        tile_budget=data.tile_budget,
        max_open=data.max_open,
        pack=data.pack,
        weighting=data.weighting,
        seed=config.run.seed,
        over_long=data.over_long,
        max_skipped=data.max_skipped,
        cache_dir=str(pathlib.Path(config.run.workdir) / "lengths"),
        workers=data.workers,
        threads=data.threads,
    )


def claim_workdir(config: TrainConfig, processor: Processor) -> pathlib.Path:
    """Makes the workdir, or checks that the one found belongs to this config; writes what loading the model needs.

    Raises:
      InputError: the workdir holds a run of another config.
    """
    workdir = pathlib.Path(config.run.workdir)
    ours = json.loads(json.dumps(identity(config)))
    record = workdir / RUN_CONFIG
    if record.exists():
        if lines := differences(ours, json.loads(record.read_text())):
            raise InputError(
                f"{workdir} holds a run of another config ({'; '.join(lines[:5])}); give another run.workdir, or the "
                "config of that run to resume it"
            )
        return workdir
    if jax.process_index() == 0:
        workdir.mkdir(parents=True, exist_ok=True)
        processor.tokenizer.save(workdir)
        model = {"format": 1, "model": config.model.to_dict(), "processor": processor.to_dict()}
        _write(workdir / "config.json", model)
        _write(record, ours)
    return workdir


def read_initial(
    config: TrainConfig, source: str, abstract: Params, fresh: Callable[[list[str]], Params] | None = None
) -> Params:
    """The parameters of a model directory or workdir, in their places and with their dtypes.

    Args:
      source: `run.init_from`, or a reference.
      abstract: shape structs with shardings.
      fresh: makes parameters, for a Flash model that may start from its base; None: it may not.

    Raises:
      InputError: it holds another model, or not exactly its parameters.
    """
    theirs, ours = _model_of(source), config.model.to_dict()
    lacking = []
    if theirs["flash"] is None and ours["flash"] is not None:
        if fresh is None:
            raise InputError(
                f"{source} has no router and no compressed branch; give a Flash model: objective 'consistency' makes "
                "one of it"
            )
        lacking = [path for path in abstract if re.search(FLASH_PARTS, path)]
        theirs["flash"] = ours["flash"]
    _check_same(source, ours, theirs)
    params = read_params(locate(source), {path: leaf for path, leaf in abstract.items() if path not in lacking})
    if lacking:
        _LOG.info("%s has no router and no compressed branch: they begin with random values of run.seed", source)
        params |= fresh(lacking)
    return params


def in_products(path: str) -> bool:
    """Whether a parameter meets activations in a product of the run's dtype; a router's stay exact."""
    return path.endswith(".weight") and ".router." not in path


def read_reference(config: TrainConfig, abstract: Params) -> Params:
    """The frozen reference of a stage, its weights in the dtype of the run's products: it is never updated. It sees
    every tile at full resolution, so what a Flash model has besides its base is not read.
    """
    dtype = jnp.dtype(config.run.dtype)
    abstract = {
        path: jax.ShapeDtypeStruct(leaf.shape, dtype if in_products(path) else leaf.dtype, sharding=leaf.sharding)
        for path, leaf in abstract.items()
        if not re.search(FLASH_PARTS, path)
    }
    source = config.stage.reference or config.run.init_from
    theirs, ours = _model_of(source), config.model.to_dict()
    _check_same(source, {**ours, "flash": None}, {**theirs, "flash": None})
    return read_params(locate(source), abstract, ignore=FLASH_PARTS)


def _model_of(source: str) -> dict[str, Any]:
    """The model config of a model directory or workdir."""
    path = pathlib.Path(source) / "config.json"
    try:
        return json.loads(path.read_text())["model"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} can't be read ({error}); give a model directory or a workdir") from error


def _check_same(source: str, ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    # Settings of the stage or of inference, not of the weights.
    theirs["vision"]["drop_path"] = ours["vision"]["drop_path"]
    if ours["flash"] is not None and theirs["flash"] is not None:
        theirs["flash"] = {**ours["flash"], "heads": theirs["flash"]["heads"]}
    if lines := differences(ours, theirs):
        raise InputError(f"{source} holds another model ({'; '.join(lines[:5])}); give its config")


def _write(path: pathlib.Path, value: Any) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
    os.replace(temporary, path)
