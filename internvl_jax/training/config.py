"""The configuration of a run: mutable dataclasses that flags may override, around a frozen model config.

`run.setup` checks it once, before anything is built, and takes it apart; what it lets through needs no second look.
"""

import dataclasses
from typing import Annotated, Literal

from msgspec import Meta

from internvl_jax.data import Tiles, Weighting
from internvl_jax.models import InternVLConfig, Offload, Products, Remat
from internvl_jax.validation import CountOrZero, Fraction, NotNegative, Positive

Steps = Annotated[int, Meta(ge=1, le=10**9)]
Below1 = Annotated[float, Meta(ge=0, lt=1)]


@dataclasses.dataclass
class Group:
    """Parameters whose path matches `pattern` (re.search); the first group that matches a path has it.

    Attributes:
      learning_rate: a factor of the run's rate.
      weight_decay: a factor of the run's decay.
      frozen: these parameters stay as they are; neither a gradient nor optimizer state is kept.
    """

    pattern: str
    learning_rate: NotNegative = 1.0
    weight_decay: NotNegative = 1.0
    frozen: bool = False


@dataclasses.dataclass
class OptimConfig:
    """AdamW with linear warm-up; then the rate decays to zero along a cosine, or stays ('constant').

    Attributes:
      learning_rate: the rate after warm-up.
      warmup_ratio: the share of the run's steps over which the rate rises.
      weight_decay: decoupled, as in AdamW.
      clip_norm: the largest norm of the gradient; larger ones are scaled down to it.
      groups: factors of rate and decay by parameter, and which are frozen; a flag gives them as JSON,
        '[{"pattern": "^vit", "frozen": true}, {"pattern": ".*"}]'.
    """

    learning_rate: Annotated[float, Meta(gt=0, le=10)]
    warmup_ratio: Annotated[float, Meta(ge=0, le=1, description="(a share of the run's steps)")]
    weight_decay: Fraction
    beta1: Below1
    beta2: Below1
    eps: Annotated[float, Meta(gt=0, le=1)]
    clip_norm: Annotated[float, Meta(gt=0, le=10**9, description="(1e9 clips nothing)")]
    schedule: Literal["cosine", "constant"] = "cosine"
    # As the release (HF Trainer): no decay on biases and norms.
    groups: tuple[Group, ...] = (Group(r"(\.bias|norm\w*\.scale)$", weight_decay=0.0), Group(".*"))


@dataclasses.dataclass
class LoraGroup:
    """Weights whose name matches `pattern` (re.search) and that have another rank or scale than the others; the first
    group that matches a name has it.

    Attributes:
      rank, alpha: as in `LoraSettings`; None: the same as there. A rank of 0 leaves a weight without adapter.
    """

    pattern: str
    rank: Annotated[int, Meta(ge=0, le=65536)] | None = None
    alpha: Positive | None = None


@dataclasses.dataclass
class LoraSettings:
    """Low-rank adapters in place of training all weights: the model of `run.init_from` stays as it is, in `run.dtype`,
    and only adapters have gradients, moments and masters. Names of weights are as lm.layers.3.attn.q,
    vit.layers.0.mlp.fc1, projector.fc1, lm.layers.3.mlp.experts.gate.

    Attributes:
      rank: of the adapters; 0 for none, all is trained.
      alpha: an adapter's product is multiplied by alpha / rank.
      targets: a pattern (re.search) of the names of weights that have adapters.
      whole: a pattern (re.search) of the paths of parameters that are trained whole beside them, as ^projector.; empty:
        none.
      dropout: of the adapters' inputs.
      rslora: multiply by alpha / sqrt(rank) instead.
      groups: other ranks and scales by pattern; a flag gives them as JSON, '[{"pattern": "mlp", "rank": 8}]'.
      quantise: 'int8' holds the products of the language model's layers in 8 bits, frozen beneath their adapters.
    """

    rank: Annotated[int, Meta(ge=0, le=65536)] = 0
    alpha: Positive = 32.0
    targets: str = r"^lm\.layers\.\d+\.(attn\.[qkvo]|mlp\.(gate|up|down))$"
    whole: str = ""
    dropout: Below1 = 0.0
    rslora: bool = False
    groups: tuple[LoraGroup, ...] = ()
    quantise: Literal["", "int8"] = ""

    @property
    def active(self) -> bool:
        """Whether the model of `run.init_from` stays as it is."""
        return self.rank > 0 or bool(self.whole)


@dataclasses.dataclass
class DataConfig:
    """What is read and how it is packed (`data.rows.pipeline` has the details).

    Attributes:
      meta: a meta file in the released format.
      validation_meta: a meta file of conversations to measure a loss on, not to learn from; empty measures none.
      tokenizer: the directory with the tokenizer's files; empty takes those of `run.init_from`.
      template: the name of the chat template.
      system: the system text of conversations that bring none, and of the model that is trained (a critic has one);
        empty: the template's own.
      min_tiles, max_tiles, thumbnail: how an image is tiled.
      token_budget, tile_budget: the tokens and tiles that a packed row holds.
      weighting: how the loss is averaged: 'square', 'token' or 'sample'.
      max_open: how many packs stay open while packing.
      pack: False gives every sample a row of its own.
      over_long: what becomes of a sample beyond the budget: 'error' or 'drop'.
      max_skipped: how many samples may fail to load before the run stops.
      allow_outside_root: whether images may lie outside of the root that the meta file gives.
      workers, threads: how many processes load batches ahead, and how many threads in each.
    """

    meta: str
    tokenizer: str
    min_tiles: Tiles
    max_tiles: Tiles
    thumbnail: bool
    token_budget: Annotated[int, Meta(ge=1, le=2**24)]
    tile_budget: Annotated[int, Meta(ge=0, le=2**20)]
    weighting: Weighting
    validation_meta: str = ""
    template: str = "internvl2_5"
    system: str = ""
    max_open: Annotated[int, Meta(ge=1, le=2**20)] = 20
    pack: bool = True
    over_long: Literal["error", "drop"] = "error"
    max_skipped: CountOrZero = 0
    workers: Annotated[int, Meta(ge=0, le=1024)] = 0
    threads: Annotated[int, Meta(ge=1, le=1024)] = 2
    allow_outside_root: bool = False


@dataclasses.dataclass
class RunConfig:
    """How long, how large, where.

    Attributes:
      workdir: the folder of checkpoints, logs and the resolved config; a run resumes from it by itself.
      init_from: the model directory or workdir to start from; empty starts from random weights.
      steps: the number of optimizer steps.
      rows: the packed rows of a step, over all hosts.
      micro_batches: into how many parts a step's rows are split; the gradient does not depend on it.
      seed: of the data's order and of everything that is drawn.
      dtype: the dtype of products; master weights stay float32.
      products: 'int8' rounds both sides of the products of the language model's layers to 8 bits in the forward pass,
        which TPUs and GPUs multiply twice as fast as bfloat16; experts, tower and gradients stay as they are.
      remat: what the backward pass computes again (`models.stack.Runtime`).
      offload: what it doesn't, since it lies in the host's memory meanwhile: what a remat of this name would keep, and
        the sums after attention and outputs of the tower's feed-forward layers besides.
      tile_groups: into how many parts the tower takes the tiles of a micro-batch, each computed once more in the
        backward pass, which then holds the activations of one part.
      mesh: the sizes of mesh axes, as 'fsdp=16,tensor=4'; -1 is what is left.
      rules: the name of a sharding preset.
      balance: the coefficient of the experts' load-balancing loss (a mean over packed rows); 0 without experts.
      logprob_chunk: how many positions' logits are held at once.
      skip_blocks: whether attention leaves out blocks that hold other samples only (from rows of 1,024 tokens on); no
        value depends on it.
      validate_every: the steps between measurements of the validation loss, which the last step has too.
      save_every: the steps between checkpoints.
      keep_last, keep_every: which checkpoints are kept: the last n, and each whose step this divides (0: none).
      log_every: the steps between lines on the terminal (metrics.jsonl has every step).
      max_nonfinite: how many steps in a row may have a non-finite gradient (such steps are not applied) before the run
        stops.
    """

    workdir: str
    steps: Steps
    rows: Annotated[int, Meta(ge=1, le=2**24)]
    init_from: str = ""
    micro_batches: Annotated[int, Meta(ge=1, le=2**24)] = 1
    seed: Annotated[int, Meta(ge=0, lt=2**32)] = 42
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    products: Products = "plain"
    remat: Remat = "full"
    offload: Offload = "none"
    tile_groups: Annotated[int, Meta(ge=1, le=2**20)] = 1
    mesh: str = "fsdp=-1"
    rules: str = "fsdp"
    balance: NotNegative = 0.0
    logprob_chunk: Annotated[int, Meta(ge=1, le=2**24)] = 1024
    skip_blocks: bool = True
    validate_every: Steps = 500
    save_every: Steps = 500
    keep_last: Steps = 2
    keep_every: Annotated[int, Meta(ge=0, le=10**9)] = 0
    log_every: Steps = 10
    max_nonfinite: CountOrZero = 3


@dataclasses.dataclass
class StageConfig:
    """What the settings of every stage have; each stage's own class stands in its module (`stages`).

    Attributes:
      reference: the model directory or workdir of the frozen reference; empty takes `run.init_from`.
    """

    reference: str = ""


@dataclasses.dataclass
class TrainConfig:
    """Attributes:
    objective: the name of the stage (`stages.registry`).
    stage: its settings; None for a stage that has none.
    lora: adapters in place of training all weights.
    """

    model: InternVLConfig
    objective: str
    data: DataConfig
    optim: OptimConfig
    run: RunConfig
    stage: StageConfig | None = None
    lora: LoraSettings = dataclasses.field(default_factory=LoraSettings)


# What may differ between a run and its resumption: it changes neither the parameters nor the order of the data. A stage
# says so of its own settings (`Stage.free`).
FREE = {
    "run": {
        *("workdir", "mesh", "rules", "micro_batches", "remat", "offload", "tile_groups"),
        *("logprob_chunk", "skip_blocks"),
        *("validate_every", "save_every", "keep_last", "keep_every", "log_every", "max_nonfinite"),
    },
    "data": {"validation_meta", "workers", "threads", "max_skipped", "allow_outside_root"},
}
