"""From the config of a run to its parts: checked once, taken apart here, and claimed a workdir for."""

import contextlib
import copy
import dataclasses
import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from internvl_jax import sharding
from internvl_jax.data import (
    DEFAULT_MAX_PIXELS,
    ImageConfig,
    PipelineConfig,
    Processor,
    RowConfig,
    Tokenizer,
    get_template,
)
from internvl_jax.errors import InputError
from internvl_jax.files import claimed, whole_file
from internvl_jax.inference import read_values
from internvl_jax.models import row_unit
from internvl_jax.sharding import follow, refer
from internvl_jax.training.config import FREE, DataConfig, RunConfig, TrainConfig
from internvl_jax.training.run.adapting import with_adapter
from internvl_jax.training.run.held_out import HeldOut
from internvl_jax.training.run.program import Program, make_program
from internvl_jax.training.stages.balance import Balance, NoBalance
from internvl_jax.training.stages.base import Source, SourceParts, Start
from internvl_jax.training.stages.registry import STAGES
from internvl_jax.training.stages.terms import Objective
from internvl_jax.validation import check_fields, differences, nearest, read_json

RUN_CONFIG = "run.json"


def check(config: TrainConfig) -> None:
    """Raises InputError for values that no run can have."""
    check_fields(config, "")
    run, data = config.run, config.data
    given = {"run.workdir": run.workdir, "data.meta": data.meta, "data.tokenizer": data.tokenizer or run.init_from}
    for name, value in given.items():
        if not value:
            raise InputError(f"{name} is empty; give it with --config.{name}=PATH")
    if "://" in run.workdir:
        raise InputError(
            f"run.workdir is {run.workdir!r}; a run appends to its files, so it needs a folder of a file system that "
            "all hosts share: give the path of one, such as a network disk's"
        )
    if run.rows % run.micro_batches:
        raise InputError(f"run.micro_batches {run.micro_batches} does not divide run.rows {run.rows}; make it")
    if run.balance and config.model.text.moe is None:
        raise InputError(f"run.balance is {run.balance} but the model has no experts; set it to 0")
    if config.objective not in STAGES:
        hint = nearest(config.objective, STAGES)
        raise InputError(f"objective is {config.objective!r}{hint}; the objectives are {', '.join(STAGES)}")
    if config.lora.active and not run.init_from:
        raise InputError("lora adapts a model, and there is none; give it with --config.run.init_from=DIR")
    stage = STAGES[config.objective]
    if not isinstance(config.stage, stage.settings or type(None)):
        wanted = "no stage" if stage.settings is None else f"a stage of {stage.settings.__name__}"
        raise InputError(f"objective {stage.name!r} takes {wanted}, not {config.stage!r}")
    if stage.start is not Start.NOTHING and not run.init_from:
        raise InputError(f"objective {stage.name!r} starts from a model; give it with --config.run.init_from=DIR")
    stage.check(config.stage, config.model, data, run)


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
    config.model = with_adapter(dataclasses.replace(model, image_token_id=tokenizer.image_context), config.lora)
    image = ImageConfig(
        tile_size=model.vision.image_size,
        tokens_per_tile=model.tokens_per_tile,
        min_tiles=data.min_tiles,
        max_tiles=data.max_tiles,
        thumbnail=data.thumbnail,
        apply_exif=False,
        max_pixels=DEFAULT_MAX_PIXELS,
    )
    template = get_template(data.template).with_system(data.system or None)
    return config, Processor(image, tokenizer, template)


def describe(config: TrainConfig, mesh: Mesh) -> list[str]:
    """Every setting of a run as it was resolved, a section a line, and what follows from them: the size of a step, of
    a rollout batch, of the run; of the model what decides its size.
    """
    run, data, stage = config.run, config.data, config.stage
    sections = {"stage": stage, "data": data, "optim": config.optim, "run": run}
    if config.lora.active:
        sections["lora"] = config.lora
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
    lines += [f"model: {sizes}", f"{step}; {tokens}", *STAGES[config.objective].summary(stage, run.steps)]
    if stage is not None:
        lines.append(f"reference: {reference_of(config)}")
    return lines


def make_objective(config: TrainConfig) -> Objective:
    """The objective of a checked config."""
    moe = config.model.text.moe
    balance = NoBalance() if moe is None else Balance(config.run.balance, moe.per_token)
    return STAGES[config.objective].objective(config.stage, balance, config.run.logprob_chunk)


def build(config: TrainConfig, devices: Sequence[jax.Device] | None = None) -> Program:
    """The program of a checked config on these devices, or on all that there are."""
    objective, model = make_objective(config), with_adapter(config.model, config.lora)
    program = make_program(model, config.optim, config.run, objective, config.objective, devices)
    _check_tokens(config, program)
    _check_tiles(config.data, config.run, program)
    return program


def _check_tokens(config: TrainConfig, program: Program) -> None:
    """Raises InputError for rows whose tokens can't be spread over the devices that share them."""
    model, budget = config.model, config.data.token_budget
    image = model.vision.image_size, model.tokens_per_tile, -1
    # A row's arrays: those that a reference reads may be shorter.
    row: Any = STAGES[config.objective].empty_row(
        config.stage, model, RowConfig(budget, 0, *image, config.data.weighting)
    )
    with sharding.use(program.mesh, program.rules):
        parts = sharding.spread("time")
        for tokens in sorted({len(rows.tokens_BT[0]) for rows in (row.texts, row.rows)}):
            unit = row_unit(tokens, model.text.heads)
            if tokens % unit == 0:
                continue
            why = "" if unit == parts else f" (its {model.text.heads} heads can't, so attention takes whole blocks)"
            raise InputError(
                f"data.token_budget {budget} can't be spread over the {parts} devices of a row{why}; make it a "
                f"multiple of {budget // tokens * unit}"
            )


def _check_tiles(data: DataConfig, run: RunConfig, program: Program) -> None:
    """Raises InputError for rows whose tiles can't be spread over the devices that share them."""
    rows = run.rows // run.micro_batches
    with sharding.use(program.mesh, program.rules):
        tiles = sharding.spread("tiles")
    if rows * data.tile_budget % tiles:
        raise InputError(
            f"{rows} rows of data.tile_budget {data.tile_budget} tiles can't be spread over {tiles} devices; make the "
            f"budget a multiple of {tiles // math.gcd(rows, tiles)}"
        )
    if rows * data.tile_budget // tiles % run.tile_groups:
        raise InputError(
            f"run.tile_groups {run.tile_groups} can't split the {rows * data.tile_budget // tiles} tiles of a device; "
            "give a number that divides them"
        )


def open_source(config: TrainConfig, program: Program, processor: Processor) -> Source:
    """Where the batches of a run come from; its data is checked here.

    Raises:
      InputError: data that can't be read.
    """
    parts = SourceParts(pipeline_config(config), config.run, reference_of(config), program, processor)
    return STAGES[config.objective].source(config.stage, parts)


def open_held_out(config: TrainConfig, program: Program, processor: Processor) -> HeldOut | None:
    """The data of the validation loss, if there is any; it is checked here.

    Raises:
      InputError: data that can't be read.
    """
    if not config.data.validation_meta:
        return None
    pipeline = dataclasses.replace(pipeline_config(config), meta=config.data.validation_meta)
    return HeldOut(pipeline, config.run, program, processor)


def reference_of(config: TrainConfig) -> str:
    """The model directory or workdir of the frozen reference, in stages that have one."""
    given = "" if config.stage is None else config.stage.reference
    return given or config.run.init_from


def pipeline_config(config: TrainConfig) -> PipelineConfig:
    """What is read and how it is laid out in rows, of samples that are conversations."""
    data = config.data
    return PipelineConfig(
        meta=data.meta,
        kind="conversations",
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
        allow_outside_root=data.allow_outside_root,
    )


def identity(config: TrainConfig) -> dict[str, Any]:
    """The part of the config that a resumed run must share with the one that it continues. What a run does without is
    left out, so that runs of earlier versions, which knew nothing of it, go on.
    """
    values = dataclasses.asdict(config)
    if not config.lora.active:
        del values["lora"], values["model"]["lora"]
    elif not config.lora.quantise:
        del values["lora"]["quantise"]
    if config.model.quantised is None:
        del values["model"]["quantised"]
    if not config.data.system:
        del values["data"]["system"]
    if config.run.products == "plain":
        del values["run"]["products"]
    return _bound(values, STAGES[config.objective].free)


def hold_workdir(workdir: str) -> contextlib.AbstractContextManager[None]:
    """Keeps other runs out of a workdir; one process does so for all of a run.

    Raises:
      InputError: another run writes there; says which.
    """
    return claimed(pathlib.Path(workdir)) if jax.process_index() == 0 else contextlib.nullcontext()


def _bound(values: dict[str, Any], free_of_stage: frozenset[str]) -> dict[str, Any]:
    """A config without its free fields."""
    bound = dict(values)
    for section, free in {**FREE, "stage": free_of_stage}.items():
        if isinstance(fields := values.get(section), dict):
            bound[section] = {name: value for name, value in fields.items() if name not in free}
    return bound


def claim_workdir(config: TrainConfig, processor: Processor) -> None:
    """Makes the workdir, or checks that the one found belongs to this config; writes what loading the model needs. One
    process does it for all.

    Raises:
      InputError: the workdir holds a run of another config.
    """
    workdir = pathlib.Path(config.run.workdir)
    ours = json.loads(json.dumps(identity(config)))
    record = workdir / RUN_CONFIG
    if record.exists():
        found = read_json(record, f"restore it, or remove {workdir} to start anew")
        # Fields that an older version did not leave free may stand there.
        if lines := differences(ours, _bound(found, STAGES[config.objective].free)):
            raise InputError(
                f"{workdir} holds a run of another config ({'; '.join(lines[:5])}); give another run.workdir, or the "
                "config of that run to resume it"
            )
        if config.model.lora is not None:  # a run of another config may have no base at all
            follow(read_values(workdir).get("base"), workdir / "config.json")
        return
    workdir.mkdir(parents=True, exist_ok=True)
    processor.tokenizer.save(workdir)
    model = {"format": 1, "model": config.model.to_dict(), "processor": processor.to_dict()}
    if config.model.lora is not None:
        model["base"] = refer(config.run.init_from)
    _write(workdir / "config.json", model)
    _write(record, ours)


def _write(path: pathlib.Path, value: Any) -> None:
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
