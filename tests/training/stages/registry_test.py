"""A stage is its record: what the run asks of a stage, it asks the registry."""

import dataclasses

import jax
import pytest

from internvl_jax.errors import InputError
from internvl_jax.sharding import make_mesh
from internvl_jax.training import MpoConfig, StageConfig, build
from internvl_jax.training.run import setup
from internvl_jax.training.stages.base import Start
from internvl_jax.training.stages.ntp import NTP
from internvl_jax.training.stages.registry import STAGES
from tests.training import toy


@dataclasses.dataclass
class Settings(StageConfig):
    pace: int = 3
    where: str = ""


def check(settings, model, data, run):
    if settings.pace > run.steps:
        raise InputError(f"stage.pace is {settings.pace}, more than run.steps")


@pytest.fixture
def config(data, tmp_path, monkeypatch):
    """A run of a stage that only this test knows."""
    given = {"name": "paced", "settings": Settings, "check": check, "free": frozenset({"where"})}
    summary = lambda settings, steps: [f"pace: {settings.pace} of {steps}"]
    monkeypatch.setitem(STAGES, "paced", dataclasses.replace(NTP, **given, start=Start.MODEL, summary=summary))
    made = toy.config(data, tmp_path / "w", init_from="elsewhere")
    made.objective, made.stage = "paced", Settings()
    return made


def test_a_record_is_all_that_a_new_stage_takes(config):
    config, processor = setup.prepare(config)
    program = build(config, jax.devices()[:1])
    assert program.objective.coefficients == {"ntp": 1.0}
    source = setup.open_source(config, program, processor)
    source.start(None)
    assert source.take(None).tokens_BT.shape == (config.run.rows, config.data.token_budget)
    source.close()
    told = setup.describe(config, make_mesh({}, jax.devices()[:1]))
    assert "pace: 3 of 6" in told and "reference: elsewhere" in told
    assert setup.identity(config)["stage"] == {"reference": "", "pace": 3}


def test_its_check_start_and_settings_are_asked_for(config):
    config.stage.pace = 7
    with pytest.raises(InputError, match=r"stage\.pace is 7, more than run\.steps"):
        setup.check(config)
    config.stage = MpoConfig()
    with pytest.raises(InputError, match="objective 'paced' takes a stage of Settings, not MpoConfig"):
        setup.check(config)
    config.stage, config.run.init_from = Settings(), ""
    with pytest.raises(InputError, match="objective 'paced' starts from a model"):
        setup.check(config)
    config.objective = "paces"
    with pytest.raises(InputError, match=r"objective is 'paces'.*'paced'.*the objectives are .*\bgspo\b"):
        setup.check(config)


def test_free_settings_exist():
    for stage in STAGES.values():
        fields = set() if stage.settings is None else {field.name for field in dataclasses.fields(stage.settings)}
        assert stage.free <= fields, stage.name
