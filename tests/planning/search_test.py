"""Layouts of a training step are found with few compiles: stands-in for those say what a table says they need."""

import dataclasses
import importlib

import pytest

from configs.experiments import gspo, lora, sft, warmup
from internvl_jax.planning import plan, table, trial
from internvl_jax.planning.chips import Topology
from internvl_jax.planning.layouts import REMATS, Trained, arithmetic, kept, offloaded, training_layouts

planning = importlib.import_module("internvl_jax.planning.plan")
SMALL = Topology.parse("v6e:2x2")


@pytest.fixture
def compiles(monkeypatch):
    """What is compiled is noted in `asked`; `needs` says how many bytes each takes, or None: it doesn't say."""
    asked, needs = [], {}

    def fake(config, task, where, size, auto, assumed):
        name = config.run.remat if config.run.offload == "none" else f"{config.run.remat}, {config.run.offload}"
        asked.append(name)
        total = needs[name]
        known = {} if total is None else {"total": total}
        return {"fits": total is not None and total <= where.chip.hbm, "bytes_per_device": known, "layout": name}

    monkeypatch.setattr(planning, "_plan", fake)
    return asked, needs


def found(config, where):
    return plan(config, "train", str(where), table.SIZE, auto=True)


def by_arithmetic(config, where, more=0.0):
    layout = training_layouts(config, where)[-1]
    return {remat: arithmetic(config, where, {**layout, "remat": remat}) + more for remat in REMATS}


@pytest.mark.parametrize("more", [-20e9, -9e9, -3e9, 0.0, 2e9, 6e9, 12e9, 25e9])
@pytest.mark.parametrize(("made", "where"), [(lora, SMALL), (sft, Topology.parse("v5p:4x4x4"))])
def test_a_constant_error_of_the_arithmetic_costs_one_more_compile(compiles, made, where, more):
    """However much it is: what is found recomputes least of all that fits."""
    (asked, needs), config = compiles, made.get_config("8b")
    needs |= by_arithmetic(config, where, more)
    needs |= {f"full, {offload}": 1e12 for offload in REMATS}
    fit = [remat for remat in REMATS if needs[remat] <= where.chip.hbm]
    best = found(config, where)
    assert best["fits"] == bool(fit) and best["layout"] == (fit[0] if fit else "full")
    on_chip = [name for name in asked if "," not in name]
    assert len(on_chip) == len(set(on_chip)) <= 2
    assert fit[:1] == ["full"] or on_chip == asked  # the host's memory is for what else has to be recomputed whole


def test_what_a_compiler_does_not_say_costs_more(compiles):
    (asked, needs), config = compiles, lora.get_config("8b")
    first = [layout["remat"] for layout in training_layouts(config, SMALL)]
    needs |= dict.fromkeys(REMATS) | {"full": 20e9} | {f"full, {offload}": None for offload in REMATS}
    assert found(config, SMALL)["layout"] == "full"
    assert asked[: len(first)] == first


def test_between_what_fits_and_what_does_not(compiles):
    """Where the arithmetic is off by another amount for each."""
    (asked, needs), config = compiles, sft.get_config("8b")
    where = Topology.parse("v5p:4x4x4")
    hbm = where.chip.hbm
    needs |= {"mlp": 1.4 * hbm, "gate": 1.3 * hbm, "qkv": 1.2 * hbm, "attention": 0.5 * hbm, "full": 0.4 * hbm}
    assert found(config, where)["layout"] == "attention"
    assert len(asked) == len(set(asked)) <= 4 and "full" not in asked


def test_nothing_is_sent_to_the_host_where_nothing_fits_on_the_chip(compiles):
    """What keeps more there needs at least as much on the chip."""
    (asked, needs), config = compiles, sft.get_config("38b")
    where = Topology.parse(table.TRAINING["38b"])
    assert training_layouts(config, where)[0]["offload"] == "attention"
    needs |= {"full": 1.5 * where.chip.hbm}
    assert not found(config, where)["fits"] and asked == ["full"]
    asked.clear()
    needs |= {"full": 0.99 * where.chip.hbm, "full, attention": 0.995 * where.chip.hbm}
    assert found(config, where)["layout"] == "full, attention" and asked == ["full", "full, attention"]
    needs |= {"full, attention": None}
    assert found(config, where)["layout"] == "full"


def test_what_is_frozen_needs_neither_inputs_nor_gradients():
    config = lora.get_config("8b")
    text, vision = config.model.text, config.model.vision
    trained, whole = Trained.of(config), Trained.of(sft.get_config("8b"))
    assert (trained.text, trained.tower, whole.text, whole.tower) == (True, False, True, True)
    table_size = text.vocab * text.width
    assert (trained.head, whole.head) == (2 * table_size, 12 * table_size)  # as it lies there; three times in float32
    config.lora.targets = r"^(vit|lm)\.layers"
    tower = kept(config, Trained.of(config), "full") - kept(config, trained, "full")
    inputs = 2 * vision.layers * config.data.tile_budget * (vision.grid**2 + 1) * vision.width
    assert tower == inputs and Trained.of(config).state > trained.state
    config.lora.targets = "lm.head"
    assert not Trained.of(config).text and Trained.of(config).head == whole.head
    # A projector alone has the language model above it; a policy's frozen tower has nothing to be kept for.
    assert Trained.of(warmup.get_config("8b")).text and not Trained.of(warmup.get_config("8b")).tower
    policy = gspo.get_config("8b")
    assert not Trained.of(policy).tower
    wide = 2 * text.layers * policy.data.token_budget * text.width
    assert offloaded(policy, "attention") == wide + 2 * text.layers * policy.data.token_budget * text.heads * 128


def test_the_smallest_slice_for_adapters_by_arithmetic():
    """A frozen model of 8B and its activations have room on four chips, where all of it is trained it needs 16."""
    first = lambda config: str(next(planning.candidates(config, "train", table.SIZE, "v6e")))
    config = lora.get_config("8b")
    assert first(config) == "v6e:2x2"
    assert first(dataclasses.replace(config, lora=type(config.lora)())) != "v6e:2x2"


def test_what_a_compiler_without_room_says_that_it_wants():
    message = "Ran out of memory in memory space hbm. Used 36.25G of 31.25G hbm. Exceeded hbm capacity by 5.00G."
    assert trial._used(message) == 36.25 * 2**30 and trial._used("Used 512.50M of 1G") == 512.5 * 2**20
    assert trial._used("Ran out of memory") is None
