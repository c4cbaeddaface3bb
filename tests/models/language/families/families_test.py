"""Every record fits what is built of it: bricks, rows, config both ways; nobody else asks for a family's name."""

import ast
import dataclasses
import json
import pathlib

import pytest

from checkpoint_convert.export_config import released_config
from checkpoint_convert.hf_config import read_config
from checkpoint_convert.tables import TABLES
from configs.models import sizes
from internvl_jax.data.text.templates import get_template
from internvl_jax.errors import InputError
from internvl_jax.models import InternVL, InternVLConfig
from internvl_jax.models.config import MoeConfig, NtkConfig, YarnConfig
from internvl_jax.models.language.families import FAMILIES, kind_of
from internvl_jax.sharding import abstract

ROOT = pathlib.Path(__file__).parents[4]
KINDS = [(family, kind) for family in FAMILIES.values() for kind in family.kinds]
NAMES = [kind.model_type for _, kind in KINDS]


def toy(family, kind) -> InternVLConfig:
    """A tiny model of an architecture, with whatever that can have."""
    tiny = sizes.get("tiny")
    text = dataclasses.replace(
        tiny.text,
        family=family.name,
        moe=MoeConfig(experts=3, per_token=2) if kind is family.experts else None,
        window=7 if "window" in kind.keys else None,
        yarn=YarnConfig(4.0, 32.0, 1.0, positions=64) if "yarn" in kind.ropes else None,
        ntk=NtkConfig(2.0, 64) if "dynamic" in kind.ropes else None,
    )
    return dataclasses.replace(tiny, text=text)


@pytest.mark.parametrize(("family", "kind"), KINDS, ids=NAMES)
def test_rows_are_those_of_the_bricks(family, kind):
    specs = abstract(lambda rngs: InternVL(toy(family, kind), rngs))[1]
    for form in kind.formats:
        targets = [row.target for row in TABLES[form, kind.model_type].rows_of(specs)]
        assert sorted(targets) == sorted(specs)
    language = {released.target for released in kind.tensors}
    assert language == {path for path in specs if path.startswith("lm.")}, "a row without a brick"


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize(("family", "kind"), KINDS, ids=NAMES)
def test_config_both_ways(tmp_path, family, kind, plain):
    config = toy(family, kind)
    assert kind_of(config.text) is kind
    if plain and "default" in kind.ropes:
        config = dataclasses.replace(config, text=dataclasses.replace(config.text, ntk=None, yarn=None))
    for form in kind.formats:
        values = released_config(form, config, None, "float32", None)
        (tmp_path / "config.json").write_text(json.dumps(values))
        again = read_config(tmp_path)
        assert again.model(config.image_token_id).text == config.text
        assert again.language_family is family
    assert InternVLConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_its_template_is_there(family):
    assert get_template(family.template).name == family.template


def test_configs_that_were_stored_before_ntk_mean_what_they_meant():
    config = sizes.get("20b-a4b")
    stored = config.to_dict()
    del stored["text"]["ntk"]
    assert InternVLConfig.from_dict(stored) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"family": "qwen9"}, "family 'qwen9' is unknown; known are .*internlm2"),
        ({"family": "gpt_oss"}, "'gpt_oss' has no models without experts"),
        ({"family": "qwen2", "moe": MoeConfig(3, 2)}, "'qwen2' has no models with experts"),
        ({"window": 5}, "'qwen3' have no window"),
        ({"ntk": NtkConfig(2.0, 64), "yarn": YarnConfig(4.0, 32.0, 1.0, positions=64)}, "yarn and ntk"),
    ],
)
def test_what_no_family_is(change, message):
    tiny = sizes.get("tiny")
    with pytest.raises(InputError, match=message):
        config = dataclasses.replace(tiny, text=dataclasses.replace(tiny.text, **change))
        abstract(lambda rngs: InternVL(config, rngs))


def test_nobody_else_asks_for_the_name_of_a_family():
    """A family differs by what its record holds."""
    names = {*FAMILIES, *NAMES}
    rooms = [ROOT / room for room in ("internvl_jax", "checkpoint_convert", "launch", "configs", "benchmarks")]
    for file in (file for room in rooms for file in room.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            sides = [node.left, *node.comparators] if isinstance(node, ast.Compare) else []
            sides += [node.value] if isinstance(node, ast.MatchValue) else []
            sides += node.args if isinstance(node, ast.Call) and _asks_text(node) else []
            inner = [part for side in sides for part in ast.walk(side)]
            assert not [part for part in inner if isinstance(part, ast.Constant) and part.value in names], file


def _asks_text(call: ast.Call) -> bool:
    return isinstance(call.func, ast.Attribute) and call.func.attr in ("startswith", "endswith")
