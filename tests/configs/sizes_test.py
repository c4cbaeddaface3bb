"""The published sizes to the last parameter, and every stage for every size."""

import importlib
import math
import pathlib

import pytest

import configs.experiments
from configs.models import sizes
from internvl_jax.errors import InputError
from internvl_jax.models import InternVL
from internvl_jax.sharding import abstract
from internvl_jax.training import TrainConfig
from internvl_jax.training.config import check

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
FOLDER = pathlib.Path(configs.experiments.__file__).parent
STAGES = sorted(path.stem for path in FOLDER.glob("*.py") if "def get_config" in path.read_text())


@pytest.mark.parametrize("size", PUBLISHED)
def test_parameter_counts(size):
    _, specs = abstract(lambda rngs: InternVL(sizes.get(size), rngs))
    counts = dict.fromkeys(("vit", "projector", "lm"), 0)
    for path, spec in specs.items():
        counts[path.split(".")[0]] += math.prod(spec.shape)
    assert tuple(counts.values()) == PUBLISHED[size]


def test_every_published_size_is_counted():
    assert set(sizes.SIZES) == {*PUBLISHED, "tiny"}
    assert sum(PUBLISHED["8b"]) * 2 == 17_056_636_928


@pytest.mark.parametrize("size", [*PUBLISHED, "tiny"])
def test_a_tile_becomes_256_tokens(size):
    assert sizes.get(size).tokens_per_tile == (256 if size in PUBLISHED else 16)


@pytest.mark.parametrize("size", [*PUBLISHED, "tiny"])
@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_builds_for_every_size(stage, size):
    config = importlib.import_module(f"configs.experiments.{stage}").get_config(size)
    assert isinstance(config, TrainConfig)
    assert config.model.text == sizes.get(size).text
    config.run.workdir, config.data.meta, config.data.tokenizer = "w", "m", "t"
    check(config)


def test_stages_are_found():
    assert {"cpt", "sft"} <= set(STAGES)


@pytest.mark.parametrize("name", ["9b", "8B", ""])
def test_an_unknown_size_is_named(name):
    with pytest.raises(InputError, match=f"no model size is called '{name}'; the sizes are 1b, 2b"):
        sizes.get(name)
    for stage in STAGES:
        with pytest.raises(InputError, match="no model size is called"):
            importlib.import_module(f"configs.experiments.{stage}").get_config(name)
