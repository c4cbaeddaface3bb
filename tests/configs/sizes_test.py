"""The published sizes to the last parameter, and every stage for every size."""

import collections
import importlib
import math
import pathlib

import pytest

import configs.experiments
from configs.models import sizes
from internvl_jax.errors import InputError
from internvl_jax.models import InternVL, Runtime
from internvl_jax.sharding import structure
from internvl_jax.training import TrainConfig
from internvl_jax.training.run.optim import assign, check_idle
from internvl_jax.training.run.setup import check, make_objective

# Recounted from the shapes; 8B is half the bytes that the index of the released checkpoint gives.
PUBLISHED = {  # vision tower, projector, language model
    "1b": (304_012_288, 5_253_120, 751_632_384),
    "2b": (304_012_288, 12_595_200, 2_031_739_904),
    "4b": (304_012_288, 17_052_672, 4_411_424_256),
    "8b": (304_012_288, 33_570_816, 8_190_735_360),
    "14b": (304_012_288, 47_204_352, 14_768_307_200),
    "38b": (5_536_496_000, 91_786_240, 32_762_123_264),
    "20b-a4b": (304_012_288, 20_104_832, 20_914_757_184),
    "30b-a3b": (304_012_288, 12_595_200, 30_532_122_624),
    "241b-a28b": (5_536_496_000, 69_239_808, 235_093_634_560),
}
# Pooling, gating and mlp2 besides; 2B-Flash is half the bytes that its listing gives. No count of 20B is published.
FLASH = {  # router, compressed branch, whole model
    "1b": (50_390_018, 39_883_776, 1_151_171_586),
    "2b": (50_390_018, 92_317_696, 2_491_055_106),
    "4b": (50_390_018, 123_253_248, 4_906_132_482),
    "8b": (50_390_018, 234_934_272, 8_813_642_754),
    "14b": (50_390_018, 325_116_928, 15_495_030_786),
    "38b": (491_702_402, 681_702_400, 39_563_810_306),
    "20b-a4b": (50_390_018, 144_185_408, 21_433_449_730),
    "30b-a3b": (50_390_018, 92_317_696, 30_991_437_826),
    "241b-a28b": (491_702_402, 520_216_576, 241_711_289_346),
}
TINY = ("tiny", "tiny-moe")
NAMES = [*PUBLISHED, *(f"{size}-flash" for size in FLASH), *TINY]
FOLDER = pathlib.Path(configs.experiments.__file__).parent
TRAINS_EXPERTS = ("cpt", "sft", "mpo", "consistency")  # with a load-balancing loss
STAGES = sorted(path.stem for path in FOLDER.glob("*.py") if "def get_config" in path.read_text())


def specs(model):
    """Of the parameters; stages share them."""
    return structure(InternVL, model, Runtime())[1]


def count(size):
    """Parameters by the first part of their path."""
    counts = collections.Counter()
    for path, spec in specs(sizes.get(size)).items():
        counts[path.split(".")[0]] += math.prod(spec.shape)
    return counts


@pytest.mark.parametrize("size", PUBLISHED)
def test_parameter_counts(size):
    assert count(size) == dict(zip(("vit", "projector", "lm"), PUBLISHED[size], strict=True))


@pytest.mark.parametrize("size", FLASH)
def test_parameter_counts_of_flash(size):
    counts = count(f"{size}-flash")
    assert (counts["router"], counts["compressed"], counts.total()) == FLASH[size]
    assert tuple(counts[part] for part in ("vit", "projector", "lm")) == PUBLISHED[size]


def test_every_published_size_is_counted():
    assert set(sizes.SIZES) == set(NAMES)
    assert sum(PUBLISHED["8b"]) * 2 == 17_056_636_928


@pytest.mark.parametrize("size", NAMES)
def test_a_tile_becomes_256_tokens_or_64(size):
    config = sizes.get(size)
    assert config.tokens_per_tile == (16 if size in TINY else 256)
    assert config.flash is None or config.tokens_per_compressed_tile == 64


@pytest.mark.parametrize("size", NAMES)
@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_builds_for_every_size(stage, size):
    config = importlib.import_module(f"configs.experiments.{stage}").get_config(size)
    assert isinstance(config, TrainConfig)
    assert config.model.text == sizes.get(size).text
    config.run.workdir, config.data.meta, config.data.tokenizer = "w", "m", "t"
    if config.stage is not None:
        config.stage.reference = "m"
    if config.stage is not None or config.lora.active:
        config.run.init_from = "m"
    check(config)
    assert (config.run.balance > 0) == (config.model.text.moe is not None and stage in TRAINS_EXPERTS)
    assert (config.model.flash is not None) == (size.endswith("-flash") or stage in ("consistency", "router"))
    paths = specs(config.model)
    check_idle(assign(paths, config.optim.groups), make_objective(config).idle, stage)


def test_stages_are_found():
    assert set(STAGES) == {"warmup", "cpt", "sft", "lora", "mpo", "gspo", "consistency", "router"}


# Of the released scripts: steps, rows or pairs or prompts of a step, learning rate, decay, warm-up, schedule, clipping.
RELEASED = {
    ("warmup", "20b-a4b"): (5000, 256, 1e-3, 0.05, 0.01, "cosine", 1.0),
    ("cpt", "20b-a4b"): (15000, 512, 2e-5, 0.05, 0.03, "cosine", 1.0),
    ("sft", "1b"): (8000, 512, 8e-5, 0.05, 0.03, "cosine", 1.0),
    ("sft", "241b-a28b"): (8000, 512, 2e-5, 0.05, 0.03, "cosine", 1.0),
    ("mpo", "8b"): (781, 256, 2e-7, 0.05, 0.03, "cosine", 1.0),
    ("gspo", "38b"): (2176, 32, 1e-6, 0.01, 0.0, "constant", 1.0),
    ("gspo", "241b-a28b"): (2184, 64, 8e-7, 0.01, 0.0, "constant", 0.5),
}


@pytest.mark.parametrize(("stage", "size"), RELEASED)
def test_released_values(stage, size):
    config = importlib.import_module(f"configs.experiments.{stage}").get_config(size)
    batch = {"mpo": "pairs", "gspo": "mini_batch"}.get(stage)
    size_of_step = getattr(config.stage, batch) if batch else config.run.rows
    optim = config.optim
    rates = optim.learning_rate, optim.weight_decay, optim.warmup_ratio, optim.schedule, optim.clip_norm
    assert (config.run.steps, size_of_step, *rates) == RELEASED[stage, size]
    assert (optim.beta1, optim.beta2, optim.eps) == (0.9, 0.999, 1e-8)
    assert config.model.vision.drop_path == {"1b": 0.0, "38b": 0.4, "241b-a28b": 0.4}.get(size, 0.1)
    frozen = assign(specs(config.model), optim.groups)
    trained = {path.split(".")[0] for path, group in frozen.items() if not group.frozen}
    assert trained == {"warmup": {"projector"}, "gspo": {"projector", "lm"}}.get(stage, {"vit", "projector", "lm"})


@pytest.mark.parametrize("name", ["9b", "8B", ""])
def test_an_unknown_size_is_named(name):
    with pytest.raises(InputError, match=f"no model size is called '{name}'; the sizes are 1b, 2b"):
        sizes.get(name)
    for stage in STAGES:
        with pytest.raises(InputError, match="no model size is called"):
            importlib.import_module(f"configs.experiments.{stage}").get_config(name)
