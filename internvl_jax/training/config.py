"""The configuration of a run: mutable dataclasses that flags may override, around a frozen model config.

`check` checks it once, before anything is built; what it lets through needs no second look.
"""

import dataclasses
from typing import Any

from internvl_jax.data.rows.views import PROBES, RATES
from internvl_jax.errors import InputError
from internvl_jax.models import InternVLConfig


@dataclasses.dataclass
class Group:
    """Parameters whose path matches `pattern` (re.search); the first group that matches a path has it.

    Attributes:
      learning_rate: multiplies the run's.
      weight_decay: multiplies the run's.
      frozen: neither a gradient nor optimizer state is kept.
    """

    pattern: str
    learning_rate: float = 1.0
    weight_decay: float = 1.0
    frozen: bool = False


@dataclasses.dataclass
class OptimConfig:
    """AdamW with linear warm-up; then the rate decays to zero along a cosine, or stays ('constant')."""

    learning_rate: float
    warmup_ratio: float  # of the run's steps
    weight_decay: float
    beta1: float
    beta2: float
    eps: float
    clip_norm: float
    schedule: str = "cosine"
    # As the release (HF Trainer): no decay on biases and norms.
    groups: tuple[Group, ...] = (Group(r"(\.bias|norm\w*\.scale)$", weight_decay=0.0), Group(".*"))


@dataclasses.dataclass
class DataConfig:
    """What is read and how it is packed (`data.rows.pipeline` has the details).

    Attributes:
      meta: meta file in the released format.
      tokenizer: directory with the tokenizer's files; empty takes those of `run.init_from`.
      template: name of the chat template.
      min_tiles, max_tiles, thumbnail: how an image is tiled.
      token_budget, tile_budget: of a packed row.
      weighting: 'square', 'token' or 'sample' averaging of the loss.
      max_open: packs that stay open while packing.
      pack: False gives every sample a row of its own.
      over_long: 'error' or 'drop', for a sample beyond the budget.
      max_skipped: samples that may fail to load before the run stops.
      workers, threads: processes, and threads in each, that load batches ahead.
    """

    meta: str
    tokenizer: str
    min_tiles: int
    max_tiles: int
    thumbnail: bool
    token_budget: int
    tile_budget: int
    weighting: str
    template: str = "internvl2_5"
    max_open: int = 20
    pack: bool = True
    over_long: str = "error"
    max_skipped: int = 0
    workers: int = 0
    threads: int = 2


@dataclasses.dataclass
class RunConfig:
    """How long, how large, where.

    Attributes:
      workdir: checkpoints, logs and the resolved config; a run resumes from it by itself.
      init_from: model directory or workdir to start from; empty starts from random weights.
      steps: optimizer steps.
      rows: packed rows of a step, over all hosts.
      micro_batches: parts that a step's rows are taken in; the gradient does not depend on it.
      dtype: of the products; master weights stay float32.
      remat: what the backward pass computes again (`models.stack.Runtime`).
      mesh: sizes of mesh axes, as 'fsdp=16,tensor=4'; -1 is what is left.
      rules: name of a sharding preset.
      balance: coefficient of the experts' load-balancing loss, a mean over packed rows; 0 in models without experts.
      logprob_chunk: positions whose logits are held at once.
      log_every: steps between lines on the terminal (metrics.jsonl has every step).
      keep_last, keep_every: checkpoints kept: the last n, and each whose step this divides (0: none).
      max_nonfinite: steps in a row with a non-finite gradient, which are not applied, before the run stops.
    """

    workdir: str
    steps: int
    rows: int
    init_from: str = ""
    micro_batches: int = 1
    seed: int = 42
    dtype: str = "bfloat16"
    remat: str = "full"
    mesh: str = "fsdp=-1"
    rules: str = "fsdp"
    balance: float = 0.0
    logprob_chunk: int = 1024
    save_every: int = 500
    keep_last: int = 2
    keep_every: int = 0
    log_every: int = 10
    max_nonfinite: int = 3


@dataclasses.dataclass
class MpoConfig:
    """Mixed preference optimisation; the released values are 256, 0.8, 0.2, 1.0 and 0.1.

    Attributes:
      pairs: of an optimizer step; they are packed into `run.rows` rows, of which some may stay empty.
      preference: weight of DPO's loss.
      quality: weight of BCO's loss.
      generation: weight of the next-token loss on chosen responses.
      beta: of DPO and BCO: how much a log-ratio to the reference is worth.
      reference: model directory or workdir of the reference; empty takes `run.init_from`.
      cache_dir: folder of the reference's log-probabilities; empty keeps them in the workdir.
    """

    pairs: int = 256
    preference: float = 0.8
    quality: float = 0.2
    generation: float = 1.0
    beta: float = 0.1
    reference: str = ""
    cache_dir: str = ""


@dataclasses.dataclass
class GspoConfig:
    """Online reinforcement learning by GSPO; defaults as released, but for what the release leaves to verl's.

    `data.meta` names prompts: a meta file, a JSONL file or the parquet file of MMPR-Tiny. A rollout batch is sampled
    with the policy as it is, at temperature 1, and used up by prompts / mini_batch optimizer steps.

    Attributes:
      prompts: of a rollout batch.
      group: responses to a prompt.
      mini_batch: prompts of an optimizer step.
      sample_prompts: prompts that are sampled at a time.
      max_prompt_tokens: longer prompts are left out.
      max_new_tokens: of a response, its stop token included.
      clip_low, clip_high: range of the sequence's ratio, 1 - low to 1 + high. The GSPO paper has 3e-4 and 4e-4.
      zero_variance: what becomes of a group whose rewards are all equal: 'keep' (advantage 0, as released), 'drop' (it
        takes no rows, and no part in the loss's denominator) or 'resample' (other prompts take its place).
      max_resamples: times that other prompts are drawn for a rollout batch before such groups stay.
      mask_overlong: a response that was cut is left out of the loss, numerator and denominator.
      routes: of a mixture's experts: 'ignore', 'note' which ones the sampler took (the metric router_agreement), or
        'replay' them in training too, with the weights that the router gives them now.
      kl: coefficient of the KL to the reference; 0 for none.
      reference: model directory or workdir of the reference; empty takes `run.init_from`.
      reward: name of a reward, or 'package.module:function' (`grading.rewards`). A response that it fails to grade is
        left out of its group: of mean and deviation, and of the loss.
      grader_seconds, grader_workers: time limit of an answer, and processes that grade (0: in this one, no limit).
      accuracies: file of known accuracies of prompts (`launch.make_pairs` writes it); empty keeps all prompts.
      lowest_accuracy, highest_accuracy: of the prompts that are kept.
    """

    prompts: int = 512
    group: int = 16
    mini_batch: int = 32
    sample_prompts: int = 64
    max_prompt_tokens: int = 8192
    max_new_tokens: int = 32768
    clip_low: float = 0.2
    clip_high: float = 0.2
    zero_variance: str = "keep"
    max_resamples: int = 3
    mask_overlong: bool = False
    routes: str = "ignore"
    kl: float = 0.0
    reference: str = ""
    reward: str = "mmpr"
    grader_seconds: float = 10.0
    grader_workers: int = 4
    accuracies: str = ""
    lowest_accuracy: float = 0.2
    highest_accuracy: float = 0.8


@dataclasses.dataclass
class ConsistencyConfig:
    """ViCO's first stage: answers that don't change where pictures are compressed.

    How the loss averages over samples is `data.weighting`; the paper's is 'sample', the mean over the tokens of a
    response, then over responses.

    Attributes:
      reference: model directory or workdir of the frozen teacher; empty takes `run.init_from`.
      rates: whether every 'picture' is compressed or not, as the paper has it, or every 'tile' by itself. A router
        decides tile by tile, and a model that has never seen a picture of both kinds may not know how to read it.
    """

    reference: str = ""
    rates: str = "picture"


@dataclasses.dataclass
class RouterConfig:
    """ViCO's second stage: the router learns which tiles can do with fewer tokens. The paper gives no values.

    Attributes:
      reference: model directory or workdir of the frozen teacher, the one that the first stage had.
      probe: 'one' measures a tile by compressing it alone; 'all' compresses all probed tiles of a sample together and
        gives them one ratio.
      probes: tiles of a sample that are probed at a visit, drawn anew each time; 0 probes every one.
      window: ratios that the threshold is taken from, the last ones of the run.
      share: of the window that lies below the threshold, and so is to be compressed; 0.5 balances the targets.
      epsilon: divergence, in nats a token, below which differences don't matter.
    """

    reference: str = ""
    probe: str = "one"
    probes: int = 4
    window: int = 65536
    share: float = 0.5
    epsilon: float = 1e-3


Stage = MpoConfig | GspoConfig | ConsistencyConfig | RouterConfig


@dataclasses.dataclass
class TrainConfig:
    """Attributes:
    objective: name of the stage's objective.
    stage: its settings; None where it has none.
    """

    model: InternVLConfig
    objective: str
    data: DataConfig
    optim: OptimConfig
    run: RunConfig
    stage: Stage | None = None


# The settings that an objective takes.
STAGES = {
    "ntp": type(None),
    "mpo": MpoConfig,
    "gspo": GspoConfig,
    "consistency": ConsistencyConfig,
    "router": RouterConfig,
}

# What may differ between a run and its resumption: it changes neither the parameters nor the order of the data.
_FREE = {
    "run": {"workdir", "mesh", "rules", "save_every", "keep_last", "keep_every", "log_every", "max_nonfinite"},
    "data": {"workers", "threads", "max_skipped"},
    "optim": set(),
    "stage": {"cache_dir", "sample_prompts", "grader_seconds", "grader_workers"},
}


def identity(config: TrainConfig) -> dict[str, Any]:
    """The part of the config that a resumed run must share with the one that it continues."""
    values = dataclasses.asdict(config)
    for section, free in _FREE.items():
        if values[section] is not None:
            values[section] = {name: value for name, value in values[section].items() if name not in free}
    return values


def differences(ours: Any, theirs: Any, path: str = "") -> list[str]:
    """Fields in which two nested dicts differ, as 'optim.learning_rate: 1e-4 here, 2e-4 there'."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        names = sorted(ours.keys() | theirs.keys())
        return [
            line
            for name in names
            for line in differences(ours.get(name), theirs.get(name), f"{path}.{name}" if path else name)
        ]
    return [] if ours == theirs else [f"{path}: {ours!r} here, {theirs!r} there"]


def check(config: TrainConfig) -> None:
    """Raises InputError for values that no run can have."""
    run, data = config.run, config.data
    for name in ("steps", "rows", "micro_batches", "logprob_chunk", "log_every", "save_every", "keep_last"):
        if vars(run)[name] < 1:
            raise InputError(f"run.{name} is {vars(run)[name]}; it must be at least 1")
    given = {"run.workdir": run.workdir, "data.meta": data.meta, "data.tokenizer": data.tokenizer or run.init_from}
    for name, value in given.items():
        if not value:
            raise InputError(f"{name} is empty; give it with --config.{name}=PATH")
    if run.rows % run.micro_batches:
        raise InputError(f"run.micro_batches {run.micro_batches} does not divide run.rows {run.rows}; make it")
    if not run.balance >= 0:
        raise InputError(f"run.balance is {run.balance}; it must be 0 or more")
    if run.balance and config.model.text.moe is None:
        raise InputError(f"run.balance is {run.balance} but the model has no experts; set it to 0")
    wanted = STAGES.get(config.objective)
    if config.objective not in STAGES:
        raise InputError(f"objective is {config.objective!r}; the objectives are {', '.join(STAGES)}")
    if not isinstance(config.stage, wanted):
        raise InputError(f"objective {config.objective!r} takes a stage of {wanted.__name__}, not {config.stage!r}")
    if isinstance(config.stage, MpoConfig) and config.stage.pairs < 1:
        raise InputError(f"stage.pairs is {config.stage.pairs}; it must be at least 1")
    if isinstance(config.stage, GspoConfig):
        _check_gspo(config.stage, config)
    if config.optim.schedule not in ("cosine", "constant"):
        raise InputError(f"optim.schedule is {config.optim.schedule!r}; use 'cosine' or 'constant'")
    if config.objective != "ntp" and not run.init_from:
        raise InputError(f"objective {config.objective!r} starts from a model; give it with --config.run.init_from=DIR")
    if isinstance(config.stage, ConsistencyConfig | RouterConfig) and config.model.flash is None:
        raise InputError(f"objective {config.objective!r} trains a Flash model; give a model config with `flash`")
    if isinstance(config.stage, ConsistencyConfig) and config.stage.rates not in RATES:
        raise InputError(f"stage.rates is {config.stage.rates!r}; use 'picture' or 'tile'")
    if isinstance(config.stage, RouterConfig):
        _check_router(config.stage, data, run)
    if run.dtype not in ("float32", "bfloat16"):
        raise InputError(f"run.dtype is {run.dtype!r}; use float32 or bfloat16")


def _check_gspo(stage: GspoConfig, config: TrainConfig) -> None:
    least = {"prompts": 1, "group": 1, "mini_batch": 1, "sample_prompts": 1, "max_prompt_tokens": 1}
    least |= {"max_new_tokens": 1, "max_resamples": 0, "kl": 0, "clip_low": 0, "clip_high": 0}
    for name, value in least.items():
        if vars(stage)[name] < value:
            raise InputError(f"stage.{name} is {vars(stage)[name]}; it must be at least {value}")
    if stage.prompts % stage.mini_batch:
        raise InputError(
            f"stage.mini_batch {stage.mini_batch} does not divide stage.prompts {stage.prompts}: a rollout batch is "
            "used up by whole steps"
        )
    if stage.zero_variance not in ("keep", "drop", "resample"):
        raise InputError(f"stage.zero_variance is {stage.zero_variance!r}; use 'keep', 'drop' or 'resample'")
    if stage.routes not in ("ignore", "note", "replay"):
        raise InputError(f"stage.routes is {stage.routes!r}; use 'ignore', 'note' or 'replay'")
    if stage.routes != "ignore" and config.model.text.moe is None:
        raise InputError(f"stage.routes is {stage.routes!r} but the model has no experts; set it to 'ignore'")
    longest, data = stage.max_prompt_tokens + stage.max_new_tokens, config.data
    if longest > data.token_budget:
        raise InputError(
            f"stage.max_prompt_tokens + max_new_tokens is {longest}, more than data.token_budget {data.token_budget}; "
            "a row must hold a prompt and its longest response"
        )
    # Rows are filled one after the other, so each but the last holds at least so many responses. What tiles have to say
    # about that is known with the prompts (`Rollouts`).
    needed = -(-stage.mini_batch * stage.group // (data.token_budget // longest))
    if config.run.rows < needed:
        raise InputError(
            f"run.rows is {config.run.rows}, but {stage.mini_batch} x {stage.group} responses of the longest kind fill "
            f"{needed} rows of {data.token_budget} tokens; raise run.rows (rows that stay empty cost next to nothing "
            "where run.micro_batches keeps them apart), or lower the mini-batch or the limits of tokens"
        )


def _check_router(stage: RouterConfig, data: DataConfig, run: RunConfig) -> None:
    if not stage.reference:
        raise InputError(
            "objective 'router' measures against the model that the consistency stage began with; give it with "
            "--config.stage.reference=DIR"
        )
    if stage.probe not in PROBES:
        raise InputError(f"stage.probe is {stage.probe!r}; use one of {', '.join(PROBES)}")
    if data.weighting != "sample":
        raise InputError(
            f"data.weighting is {data.weighting!r}; the router's losses are means over a response: 'sample'"
        )
    if run.balance:
        raise InputError(f"run.balance is {run.balance} but objective 'router' trains no experts; set it to 0")
    if stage.probes < 0 or stage.window < 1 or not 0 < stage.share < 1 or not stage.epsilon > 0:
        raise InputError(
            f"stage has probes {stage.probes}, window {stage.window}, share {stage.share}, epsilon {stage.epsilon}; "
            "give at least 0, at least 1, between 0 and 1, above 0"
        )


def parse_mesh(text: str) -> dict[str, int]:
    """'fsdp=16,tensor=4' -> {'fsdp': 16, 'tensor': 4}."""
    try:
        pairs = [part.split("=") for part in text.split(",") if part]
        return {axis.strip(): int(size) for axis, size in pairs}
    except ValueError:
        raise InputError(f"run.mesh is {text!r}; write it as 'fsdp=16,tensor=4'") from None
