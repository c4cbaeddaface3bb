"""Whole runs: learning, resuming after kills and on other devices, what is written, what is refused."""

import gzip
import json
import os
import pathlib
import random
import shutil
import time

import jax
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp
import pytest

from internvl_jax.errors import InputError
from internvl_jax.sharding.params_io import locate
from internvl_jax.training import Watching, train
from internvl_jax.training.run import hooks
from internvl_jax.training.run.hooks import plot_health
from tests.programs import save_start
from tests.training import lives, toy


def losses(workdir):
    return {line["step"]: line["loss"] for line in hooks.read_metrics(pathlib.Path(workdir))}


def stored(workdir):
    """Every array of the last checkpoint, whatever its layout on disk."""
    path = locate(workdir).absolute()
    metadata = ocp.checkpointables_metadata(path).metadata
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        {name: metadata[name] for name in ("params", "optimizer")},
    )
    return jax.tree_util.tree_leaves_with_path(ocp.load_checkpointables(path, abstract))


@pytest.mark.sigkill
@pytest.mark.parametrize(
    ("folder", "stage"),
    [
        ("start", "config"),
        pytest.param("start", "gspo_within_config", marks=pytest.mark.soak),
        pytest.param("start", "lora_config", marks=pytest.mark.soak),
        pytest.param("boards", "consistency_config", marks=pytest.mark.soak),
        pytest.param("boards", "router_config", marks=pytest.mark.soak),
    ],
)
def test_sigkill_at_random_moments_changes_nothing(request, tmp_path, folder, stage):
    """Parameters, optimizer and the loss of every step are bit-identical to a run that nobody killed. `make soak`
    kills every stage, ten times; that each goes on with the same bits after a stop is among the stage's own tests.
    """
    data, kills = request.getfixturevalue(folder), int(os.environ.get("INTERNVL_JAX_KILLS", "1"))
    steps = 12 if kills == 1 else 24
    begin = lambda name: lives.begin(stage, data, tmp_path / name, steps=steps, rows=2, keep_every=4)
    ended(begin("whole"))
    rng, within = random.Random(stage), 0
    for kill in range(kills):
        # Further on each time, and at any moment of a step or a save.
        reached = (kill + rng.random()) * (steps - 2) / kills
        run = begin("killed")
        while max(losses(tmp_path / "killed"), default=0) < reached and run.is_alive():
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.05))
        run.kill()
        run.join()
        within += 0 < max(losses(tmp_path / "killed")) < steps
    assert within
    ended(begin("killed"))
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    assert len(losses(tmp_path / "whole")) == steps
    for (path, ours), (_, theirs) in zip(stored(tmp_path / "killed"), stored(tmp_path / "whole"), strict=True):
        assert np.array_equal(ours, theirs), path
    names = {path.name for path in (tmp_path / "killed" / "checkpoints").iterdir()}
    # The last two, and multiples of four as they came.
    assert {str(steps - 2), str(steps)} <= names and "6" not in names


def ended(process):
    """Waits until a run has ended well."""
    process.join(300)
    assert process.exitcode == 0


def test_a_resumed_run_on_other_devices_reads_the_same_data(data, tmp_path):
    """Eight devices, then another mesh of them and other parts, then one: the losses of an uninterrupted run, to
    rounding.
    """
    whole = toy.config(data, tmp_path / "whole", mesh="fsdp=8")
    train(whole)
    part = toy.config(data, tmp_path / "part", mesh="fsdp=8")
    interrupt(part, after=3)
    assert locate(tmp_path / "part").name == "2"
    parts = {"micro_batches": 2, "remat": "full", "logprob_chunk": 7}
    interrupt(toy.with_run(part, mesh="data=2,fsdp=2,tensor=2", rules="fsdp_tp", **parts), after=5)
    assert locate(tmp_path / "part").name == "4"
    ended(lives.begin("config", data, tmp_path / "part"))
    ours, theirs = losses(tmp_path / "part"), losses(tmp_path / "whole")
    assert list(ours) == list(theirs) == [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=1e-5)


def interrupt(config, after):
    """Trains until step `after` has been logged, then fails as a broken disk or driver would."""

    class Stop(Exception):
        pass

    original = hooks.Progress.show

    def show(self, metrics):
        original(self, metrics)
        if metrics["step"] == after:
            raise Stop

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        patch.setattr(hooks.Progress, "show", show)
        train(config)


def test_a_run_learns_writes_its_logs_and_needs_no_second_start(data, tmp_path, monkeypatch):
    monkeypatch.setattr(hooks, "plot_health", plot_health)  # drawn anew, whatever was drawn before
    workdir = tmp_path / "w"
    config = toy.config(data, workdir, steps=30, save_every=30, log_every=3)
    began = time.time()
    summary = train(config, asked=Watching(profile=(3, 3)))
    assert summary["goodput"]["starts"] == 1 and 0 < summary["goodput"]["total_s"] < time.time() - began + 0.1
    trace = next((workdir / "profile").rglob("*.trace.json.gz"))
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    steps = [int(event["args"]["step_num"]) for event in events if event.get("name") == "train"]
    assert steps == [3]  # and no part of the fourth, which waits for it
    assert next((workdir / "profile").rglob("*.xplane.pb")).stat().st_size
    metrics = hooks.read_metrics(workdir)
    assert summary["step"] == 30 and summary["loss"] == metrics[-1]["loss"] < 0.6 * metrics[0]["loss"]
    assert [line["step"] for line in metrics] == list(range(1, 31))
    assert {"grad_norm", "learning_rate", "tokens_per_second", "mfu", "skipped", "tiles"} <= metrics[0].keys()
    assert (workdir / "health.png").read_bytes().startswith(b"\x89PNG")
    assert list((workdir / "tensorboard").iterdir())
    before = (workdir / "metrics.jsonl").read_text()
    assert train(config)["step"] == 30
    assert (workdir / "metrics.jsonl").read_text() == before


def test_a_stage_starts_from_another_and_refuses_another_model(data, tmp_path):
    interrupt(toy.config(data, tmp_path / "first", save_every=2), after=3)
    second = toy.config(data, tmp_path / "second", save_every=1, init_from=str(tmp_path / "first"))
    second.data.tokenizer = ""  # comes with the model
    interrupt(second, after=2)
    # One warm-up step of rate 0 leaves the parameters as they came.
    ours = {jax.tree_util.keystr(path): leaf for path, leaf in stored(tmp_path / "second")}
    for path, leaf in stored(tmp_path / "first"):
        if "params" in jax.tree_util.keystr(path):
            assert np.array_equal(ours[jax.tree_util.keystr(path)], leaf), path
    config = json.loads((tmp_path / "first" / "config.json").read_text())
    config["model"]["text"]["rope_theta"] = 5e5
    (tmp_path / "first" / "config.json").write_text(json.dumps(config))
    third = toy.config(data, tmp_path / "third", init_from=str(tmp_path / "first"))
    with pytest.raises(InputError, match=r"another model \(text.rope_theta"):
        train(third)


def test_a_run_that_no_longer_learns_stops(data, tmp_path):
    save_start(toy.config(data, tmp_path / "unused"), tmp_path / "start", lm__norm__scale=float("nan"))
    config = toy.config(data, tmp_path / "w", init_from=str(tmp_path / "start"), max_nonfinite=2)
    with pytest.raises(InputError, match="has not been finite for 3 steps in a row"):
        train(config)


def test_a_run_in_which_nothing_is_supervised_stops(data, tmp_path):
    """As where the folder of the images is another one: a loss of 0 in every step is no training."""
    shutil.copytree(data, tmp_path / "data")
    lines = (tmp_path / "data" / "toy.jsonl").read_text().split("\n")
    lines = [line.replace(".png", ".gone") for line in lines if '"image"' in line]
    (tmp_path / "data" / "toy.jsonl").write_text("\n".join(lines))
    meta = json.loads((tmp_path / "data" / "meta.json").read_text())
    meta["toy"] |= {"root": str(tmp_path / "data" / "images"), "annotation": str(tmp_path / "data" / "toy.jsonl")}
    del meta["toy"]["length"]
    (tmp_path / "data" / "meta.json").write_text(json.dumps(meta))
    config = toy.config(tmp_path / "data", tmp_path / "w")
    config.data.max_skipped = 10**6
    with pytest.raises(InputError, match=r"step 6: no token has been supervised for 6 steps .* [1-9]\d* samples could"):
        train(config)


def test_a_full_disk_is_one_sentence_and_keeps_earlier_checkpoints(data, tmp_path):
    code, said = lives.fill_disk("config", data, tmp_path / "w", steps=4, keep_every=4)
    assert code == 1
    assert said.splitlines()[-1].startswith("error: saving a checkpoint in "), said[-2000:]
    assert not [path for path in (tmp_path / "w" / "checkpoints").iterdir() if path.name.isdigit()]
