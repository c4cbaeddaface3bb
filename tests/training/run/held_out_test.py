"""The validation loss of a run: what it is, when it is measured, and that it changes nothing."""

import json
import pathlib

import jax
import numpy as np
import pytest

from internvl_jax.errors import InputError
from internvl_jax.training import train
from internvl_jax.training.run import hooks, setup
from tests.programs import build
from tests.training import toy


@pytest.fixture(scope="module")
def held_out(data, tmp_path_factory):
    """A meta file of the last samples of the toy data: too few to fill the last batch of rows."""
    folder = tmp_path_factory.mktemp("held_out")
    lines = (data / "toy.jsonl").read_text().splitlines()[-23:]
    (folder / "some.jsonl").write_text("\n".join(lines))
    entry = {"root": str(data / "images"), "annotation": "some.jsonl"}
    (folder / "meta.json").write_text(json.dumps({"some": entry}))
    return str(folder / "meta.json")


def opened(data, held_out, **run):
    """The held-out data of a run and the parameters that it begins with."""
    config = toy.config(data, data / "unused", **run)
    config.data.validation_meta = held_out
    config, processor = setup.prepare(config)
    program = build(config)
    return setup.open_held_out(config, program, processor), program


def test_it_is_the_mean_over_every_row_once_in_any_number_of_parts(data, held_out):
    part, program = opened(data, held_out)
    params = program.random_params()
    pipeline, total, weight = part._pipeline, 0.0, 0.0
    rows = pipeline.plan.rows(0)
    assert 0 < rows % 8 < 8 and rows != 16  # the last batch is not full
    for row in range(rows):
        batch = pipeline.row(row)[0]
        eight = jax.tree.map(lambda array: np.concatenate([array] * 8), batch)
        found = jax.device_get(part._measure(params, program.place(eight)))
        total, weight = total + float(found.total), weight + float(found.weight)
    assert part.loss(params) == pytest.approx(total / weight, rel=1e-5)
    assert part._measure._cache_size() == 1
    parts, _ = opened(data, held_out, rows=16, micro_batches=2)
    assert parts.loss(params) == pytest.approx(total / weight, rel=1e-5)


def test_a_run_writes_it_and_learns_as_without(data, held_out, tmp_path):
    def run(name, **changes):
        config = toy.config(data, tmp_path / name, steps=5, save_every=3, **changes)
        config.data.validation_meta = held_out if changes else ""
        train(config)
        return hooks.read_metrics(pathlib.Path(tmp_path / name))

    plain, with_it = run("plain"), run("with", validate_every=2)
    assert [line["loss"] for line in plain] == [line["loss"] for line in with_it]
    found = {line["step"]: line["validation_loss"] for line in with_it if "validation_loss" in line}
    assert list(found) == [2, 4, 5] and len({*found.values()}) == 3
    # A resumed run may measure more often, and says the same of the same step.
    (tmp_path / "with" / "checkpoints" / "5").rename(tmp_path / "gone")
    again = {line["step"]: line.get("validation_loss") for line in run("with", validate_every=1)}
    assert again == {1: None, 2: found[2], 3: None, 4: found[4], 5: found[5]}


def test_data_that_is_not_there_is_told_before_anything_is_built(data, tmp_path):
    config = toy.config(data, tmp_path / "w")
    config.data.validation_meta = "nowhere.json"
    with pytest.raises(InputError, match=r"nowhere\.json is not there"):
        train(config)
