"""Plans of the tiny model: what they say, and that accidents show."""

import dataclasses
import functools
import importlib.util
import json
import math
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from configs.experiments import consistency, gspo, sft
from internvl_jax.errors import InputError
from internvl_jax.models import place, seen_keys, train_flops, with_quantised
from internvl_jax.planning import Assumed, Serving, plan, table, trial
from internvl_jax.planning.chips import CHIPS, Topology
from internvl_jax.planning.engine_trial import served_weights
from internvl_jax.planning.hlo import HloProgram
from internvl_jax.planning.layouts import candidates, offloaded, serving_layout, specs, training_layouts
from internvl_jax.planning.lowering import Lowered, training
from internvl_jax.planning.step_times import coupled_times, server_times, vision_times
from internvl_jax.planning.trial import replicated
from internvl_jax.sharding import make_mesh, shard_bytes

SIZE = Serving(rows=8, prompt=64, slots=96, chunk=32, tiles=3)


@functools.cache
def planned(task, topology="cpu:8", size="tiny"):
    return plan(sft.get_config(size), task, topology, SIZE, auto=True)


def test_training_on_cpu_devices():
    found = planned("train")
    assert json.loads(json.dumps(found)) == found
    assert (found["fits"], found["replicated"], found["mfu"], found["step_s"]) == (True, [], None, None)
    assert found["layout"]["mesh"] == "fsdp=8" and found["layout"]["micro_batches"] == 1
    kinds = found["bytes_per_device"]
    assert kinds["optimizer"] == 2 * kinds["parameters"] + 2 * 4  # two moments, and two counters
    assert kinds["total"] > kinds["activations"] > 0


def test_a_plan_and_a_run_count_the_same_operations():
    """Of the same rows: `Meter` takes tiles, tokens and what tokens see from the step (`step_test`)."""
    found, config = planned("train"), sft.get_config("tiny")
    rows, tokens = config.run.rows, config.data.token_budget
    seen = rows * np.sum(seen_keys(config.model.text, np.arange(tokens, dtype=np.float32)))
    tiles = rows * config.data.tile_budget
    assert 8 * found["model_flops_per_device"] == pytest.approx(train_flops(config.model, tiles, rows * tokens, seen))
    assert found["lengths"]["how"] == "one sample a row"


def test_serving_on_cpu_devices():
    found, text = planned("serve"), sft.get_config("tiny").model.text
    assert found["layout"] == {"mesh": "data=4,tensor=2", "rules": "serve_tp", **dataclasses.asdict(SIZE)}
    assert list(found["programs"]) == ["encode", "gather", "chunk", "begin", "decode"]
    assert (found["fits"], found["replicated"]) == (True, [])
    # Keys and values in bfloat16, spread over all devices.
    pair = 2 * 2 * text.layers * 8 * text.kv_heads * 96 * text.head_width
    assert all(
        found["programs"][name]["bytes_per_device"]["cache"] == pair // 8 for name in ("chunk", "begin", "decode")
    )
    totals = [one["bytes_per_device"]["total"] for one in found["programs"].values()]
    assert found["bytes_per_device"]["total"] == max(totals)


def test_weights_and_keys_in_8_bits_need_less():
    first = lambda name, **how: str(
        next(candidates(sft.get_config(name), "decode", dataclasses.replace(table.SIZE, **how), "v6e"))
    )
    assert first("38b") == "v6e:2x4" and first("38b", quantise="int8") == "v6e:2x2"
    long = {"slots": 131072, "quantise": "int8"}
    assert first("8b", **long) == "v6e:2x4" and first("8b", cache="float8", **long) == "v6e:2x2"
    tiny = with_quantised(sft.get_config("tiny").model, "int8")
    mesh = make_mesh({"data": 2, "tensor": 2}, jax.devices()[:4])
    held = served_weights(tiny, place(tiny.text, mesh, "serve_tp"))
    kinds = {path.rpartition(".")[2]: value.dtype.name for path, value in held.items() if ".attn.q." in path}
    assert kinds == {"int8": "int8", "int8_scale": "float32"}


def test_a_frozen_base_in_8_bits_leaves_room_for_activations():
    """Of a 14B that is adapted on an H100; and a config's own offload is no part of what is chosen."""
    config = sft.get_config("14b")
    config.lora.rank, config.run.offload, config.run.rows = 8, "qkv", 64
    chosen = {}
    for config.lora.quantise in ("", "int8"):
        layouts = training_layouts(config, Topology.parse("h100:1"))
        chosen[config.lora.quantise] = [layout["remat"] for layout in layouts]
        assert {layout["offload"] for layout in layouts} == {"none"}
    assert len(chosen["int8"]) > len(chosen[""])


def test_pages_of_a_server():
    """As many bytes as the slots that they make room for, and on the same devices."""
    size = dataclasses.replace(SIZE, page=16)
    found = plan(sft.get_config("tiny"), "decode", "cpu:8", size, auto=True)
    text = sft.get_config("tiny").model.text
    pair = 2 * 2 * text.layers * 8 * text.kv_heads * 96 * text.head_width
    assert (found["bytes_per_device"]["cache"], found["replicated"]) == (pair // 8, [])
    with pytest.raises(InputError, match="pages of 0 tokens make no sense"):
        dataclasses.replace(SIZE, page=0)
    with pytest.raises(InputError, match="rows that have pages keep no float8 keys and values; leave one out"):
        dataclasses.replace(size, cache="float8")


def test_one_program_of_a_server_in_8_bits():
    config = sft.get_config("tiny")
    size = dataclasses.replace(SIZE, quantise="int8", cache="float8")
    found = plan(config, "prefill", "cpu:8", size, auto=True)
    assert (found["fits"], found["replicated"], "programs" in found) == (True, [], False)
    text, lies = config.model.text, place(config.model.text, make_mesh({"data": 4, "tensor": 2}), "serve_tp")
    weights = served_weights(with_quantised(config.model, "int8"), lies)
    plain = shard_bytes(served_weights(config.model, lies))
    assert found["bytes_per_device"]["weights"] == shard_bytes(weights) < plain
    assert found["bytes_per_device"]["cache"] == 2 * text.layers * 8 * text.kv_heads * 96 * text.head_width // 8


@functools.cache
def rollout(topology):
    config = gspo.get_config("tiny")
    config.stage.sample_prompts, config.stage.group = 4, 8
    return plan(config, "rollout", topology, SIZE, auto=True)


def test_rollouts_on_cpu_devices(monkeypatch):
    """What the run reckons with before it begins is what the programs are compiled for."""
    monkeypatch.setattr(sys.modules["internvl_jax.inference.engine.group_runner"], "FIRST_SLOTS", 16)
    monkeypatch.setattr(sys.modules["internvl_jax.inference.engine.memory"], "FIRST_SLOTS", 16)
    read = []
    monkeypatch.setattr(trial, "HloProgram", lambda text: read.append(HloProgram(text)) or read[-1])
    found = rollout("cpu:8")
    # How often every loop runs is known, as a time needs it where there is an estimate.
    assert len(read) == len(found["programs"]) and all(times > 0 for one in read for _, times in one.bodies())
    assert json.loads(json.dumps(found)) == found and (found["fits"], found["replicated"]) == (True, [])
    assert (found["layout"]["mesh"], found["sampling"]["mesh"]) == ("fsdp=8", "data=4,tensor=2")
    names = "reshard", "encode", "decode", "grow", "gather", "prompts", "begin", "decode, longest", "fewer"
    assert tuple(found["programs"]) == names
    kinds, reckoned = found["programs"]["decode, longest"]["bytes_per_device"], found["by_arithmetic"]
    counters = reckoned["state"] - kinds["parameters"] - kinds["optimizer"]
    assert 0 <= counters < 100 and kinds["weights"] == reckoned["weights"]
    # Eight prompts, four at a time with all their answers: turns are taken, and memory is within what four whole groups
    # have. But for the numbers of prompts and tokens.
    assert 0 < kinds["cache"] - 100 < reckoned["cache"]["prompts"] + reckoned["cache"]["answers"]
    first = found["programs"]["decode"]["bytes_per_device"]
    assert first["cache"] < kinds["cache"] and first["total"] < found["bytes_per_device"]["total"]


HALVES = Serving(rows=8, prompt=32, slots=128, chunk=32, tiles=3)


@pytest.mark.soak
def test_the_halves_of_a_server():
    """A chip of a vision server has all of the tower and no language model. A language server has what is left of a
    coupled one without its tower, which lies spread over its chips there.
    """
    config, where = consistency.get_config("tiny"), Topology.parse("cpu:8")
    text = config.model.text
    wide = dataclasses.replace(config.model, text=dataclasses.replace(text, vocab=1 << 20))
    vision, server = vision_times(wide, where), server_times(config, where, HALVES)
    coupled = coupled_times(config, where, HALVES)
    size = {path: 2 * math.prod(spec.shape) for path, spec in specs(wide).items()}
    tower = sum(count for path, count in size.items() if not path.startswith("lm."))
    assert vision["tower"] == tower < vision["bytes"] < sum(size.values()) - tower
    assert tower / 8 < server["tower"] < tower
    pair = 2 * 2 * text.layers * 8 * text.kv_heads * 128 * text.head_width
    assert (server["cache"], server["groups"], server["mesh"]) == (pair // 8, 4, "data=4,tensor=2")
    assert server["bytes"] > server["tower"] + server["cache"]
    # Without a chip there is no time.
    assert {*vision["encode"].values(), *coupled["encode"].values(), *server["first"].values()} == {None}
    assert [one["reason"] for one in (vision, server, coupled)] == [None] * 3


def test_a_config_without_rollouts():
    with pytest.raises(InputError, match=r"objective 'ntp' has no rollouts; give --config=gspo:SIZE$"):
        plan(sft.get_config("tiny"), "rollout", "cpu:8", SIZE, auto=True)


@pytest.mark.parametrize("task", ["train", "serve"])
def test_a_mesh_axis_that_spreads_nothing_is_refused(task):
    """Before anything is compiled: so is a run of that config, which is built the same way."""
    config = sft.get_config("tiny")
    config = dataclasses.replace(config, run=dataclasses.replace(config.run, mesh="fsdp=4,context=2"))
    with pytest.raises(
        InputError, match=r"context=2: the rules 'fsdp' .*; leave 'context' out or take rules that do \(long_context\)$"
    ):
        plan(config, task, "cpu:8", SIZE, auto=False)


def test_experts_on_cpu_devices():
    train, decode = planned("train", size="tiny-moe"), planned("decode", size="tiny-moe")
    assert (train["layout"]["mesh"], train["layout"]["rules"]) == ("fsdp=4,expert=2", "moe")
    assert decode["layout"]["mesh"] == "data=1,tensor=2,expert=4"
    assert train["replicated"] == decode["replicated"] == []


@pytest.mark.parametrize(
    ("size", "mesh", "remat"),
    [
        ("20b-a4b", "data=4,fsdp=4,expert=4", "qkv"),
        ("30b-a3b", "data=4,fsdp=4,expert=8", "qkv"),
        ("241b-a28b", "fsdp=64,expert=8", "full"),
        ("8b", "data=4,fsdp=16", "gate"),
        ("1b", "fsdp=8", "mlp"),
    ],
)
def test_layouts_of_training(size, mesh, remat):
    layouts = training_layouts(sft.get_config(size), Topology.parse(table.TRAINING[size]))
    assert {layout["mesh"] for layout in layouts} == {mesh}
    assert (layouts[0]["remat"], layouts[-1]["remat"]) == (remat, "full")
    assert remat == "full" or {layout["offload"] for layout in layouts} == {"none"}  # there is room on the chip


def test_experts_are_spread_where_they_are_served():
    (first, *_) = candidates(sft.get_config("241b-a28b"), "decode", table.SIZE, "v6e")
    assert str(first) == "v6e:4x8"
    axes, rules = serving_layout(sft.get_config("241b-a28b"), first, table.SIZE)
    assert (axes, rules) == ({"data": 1, "tensor": 4, "expert": 8}, "serve_tp")


def test_logits_are_nowhere_whole():
    """The vocabulary meets no more tokens than a chunk, on any device."""
    config = sft.get_config("tiny")
    text = dataclasses.replace(config.model.text, vocab=1048)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, text=text))
    config.run.logprob_chunk, config.run.mesh = 64, "fsdp=8"
    compiled = training(config, Topology.parse("cpu:8").devices(), Assumed()).lowered.compile()
    shapes = re.findall(r"\w+\[([\d,]+)\]", compiled.as_text())
    tokens = {math.prod(map(int, shape.split(","))) // 1048 for shape in shapes if "1048" in shape.split(",")}
    assert 64 in tokens and max(tokens) <= max(64, text.width)


def test_replicated_parameters_are_named():
    mesh = make_mesh({"data": 2, "fsdp": 4})
    struct = lambda spec: jax.ShapeDtypeStruct((2048, 1024), jnp.float32, sharding=NamedSharding(mesh, spec))
    tree = {"spread": struct(P("fsdp")), "whole": struct(P()), "half": struct(P("data"))}
    (whole, half) = sorted(replicated(Lowered(mesh, {"parameters": tree, "batch": tree}, None, 0.0)), reverse=True)
    assert "whole" in whole and "8 copies" in whole
    assert "half" in half and "4 copies" in half


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("v5p", "topology is 'v5p'; write a chip and its shape"),
        ("v9:2x2", "topology is 'v9:2x2'; write a chip and its shape"),
        ("v5p:4x4", "'v5p:4x4' is no slice of v5p; there are 2x2x1"),
        ("h100:2x2", "'h100:2x2': give a number of devices"),
        ("v5p:2x2x1*0", r"'v5p:2x2x1\*0': only TPUs come in several slices"),
        ("h100:8*2", r"'h100:8\*2': only TPUs come in several slices"),
    ],
)
def test_a_topology_that_is_none(text, message):
    with pytest.raises(InputError, match=message) as caught:
        Topology.parse(text)
    assert "\n" not in str(caught.value)


def test_topologies():
    assert Topology.parse("v5p:2x2x4").chips == 16 and str(Topology.parse("gpu:8")) == "gpu:8"
    two = Topology.parse("v5p:4x4x4*2")
    assert (two.chips, two.slices, str(two)) == (128, 2, "v5p:4x4x4*2")
    assert {layout["mesh"] for layout in training_layouts(sft.get_config("8b"), two)} == {"data=4,fsdp=32"}
    for name, chip in CHIPS.items():
        assert all(Topology.parse(f"{name}:{shape}").chips >= 1 for shape in chip.slices)
    with pytest.raises(InputError, match="8 CPU devices, cpu:9 needs 9"):
        Topology.parse("cpu:9").devices()


def test_rows_that_can_not_be_spread():
    config = sft.get_config("tiny")
    config = dataclasses.replace(config, run=dataclasses.replace(config.run, rows=6))
    with pytest.raises(InputError, match="6 rows can't be spread over the 8 chips of cpu:8"):
        plan(config, "train", "cpu:8", SIZE, auto=True)


needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="TPU programs are compiled by libtpu"
)


@needs_libtpu
def test_training_on_a_tpu_slice():
    found = planned("train", "v5p:2x2x1")
    assert found["fits"] and found["compiled_for"] == "tpu" and found["replicated"] == []
    assert found["executed_flops_per_device"] > found["model_flops_per_device"] > 0
    assert found["step_s"] >= found["compiled_s"] > 0 and 0 < found["mfu"] < 1
    assert found["collective_bytes_per_device"]["all-gather"] > 0


@needs_libtpu
def test_training_on_two_slices():
    """Only the sum of gradients goes over the network between them."""
    found = planned("train", "v5p:2x2x1*2")
    assert found["fits"] and found["chips"] == 8 and found["layout"]["mesh"] == "data=2,fsdp=4"
    assert found["assumed"]["latency_s"] == 5e-6 and any("between slices" in one for one in found["not_modelled"])


@needs_libtpu
def test_rollouts_on_a_tpu_slice():
    found = rollout("v5p:2x2x1")
    assert found["fits"] and found["compiled_for"] == "tpu" and found["replicated"] == []
    token = found["programs"]["decode"]
    assert token["step_s"] >= token["read_s"] > 0 and token["transfers"] > 0
    # Activations travel, and no weights.
    assert 0 < sum(token["collective_bytes_per_device"].values()) < token["bytes_per_device"]["weights"] / 10


@needs_libtpu
def test_step_times_of_both_halves():
    config, where = consistency.get_config("tiny"), Topology.parse("v5p:2x2x1")
    vision, server = vision_times(config.model, where), server_times(config, where, HALVES)
    coupled = coupled_times(config, where, HALVES)
    for seconds in (vision["encode"], coupled["encode"], server["first"], server["token"]):
        assert 0 < min(seconds.values()) and list(seconds.values()) == sorted(seconds.values())
    assert server["late"] > 0 < server["begin"]


@needs_libtpu
def test_pages_on_a_tpu_slice():
    """The kernel is compiled, for parts of prompts and for tokens, and no layer's pages are copied for it."""
    config, size = sft.get_config("tiny"), Serving(rows=8, prompt=64, slots=1024, chunk=64, tiles=3, page=64)
    text = dataclasses.replace(config.model.text, heads=8, kv_heads=4, head_width=128)
    wide = dataclasses.replace(config, model=dataclasses.replace(config.model, text=text))
    found = plan(wide, "serve", "v5p:2x2x1", size, auto=True)["programs"]
    for name in ("chunk", "decode"):
        kinds = found[name]["bytes_per_device"]
        assert kinds["cache"] == text.layers * 8 * 1024 * 2 * 128 * 2 and found[name]["kernels_s"] > 0
        assert kinds["activations"] < kinds["cache"] / text.layers
    with pytest.raises(InputError, match=r"the model has heads of width .* need heads of a multiple of 128"):
        plan(config, "decode", "v5p:2x2x1", dataclasses.replace(size, rows=4), auto=True)


def test_the_table_goes_on_where_it_stopped(tmp_path, monkeypatch):
    asked = []
    one = {
        "step_s": 0.25,
        "compiled_s": 0.25,
        "kernels_s": 0.0,
        "transfers_s": 0.0,
        "read_s": 0.2,
        "transfers": 7,
        "mfu": 0.5,
        "mfu_in_cycles": 0.4,
        "collective_bytes_per_device": {"all-gather": 3e6},
        "compile_s": 1,
        "bytes_per_device": {
            **dict.fromkeys(("parameters", "optimizer", "weights", "cache", "activations", "total"), 1e9),
            "limit": None,
        },
    }

    def fake(config, task, chip, size, auto, assumed):
        asked.append(task if assumed.median is None else f"{task}, packed")
        if task == "prefill":
            raise InputError("too large")
        layout = {"mesh": "data=2", "rules": "fsdp", "remat": "full", "micro_batches": 1} | dataclasses.asdict(size)
        slots = {"first": 2048, "longest": 4096}
        sampling = {"mesh": "tensor=2", "prompts": 2, "width": 4, "read_together": 2, "slots": slots}
        programs = dict.fromkeys(("encode", "chunk", "begin", "decode", "reshard", "prompts", "decode, longest"), one)
        head = {"task": task, "topology": chip, "fits": True, "layout": layout, "sampling": sampling}
        return {**head, **one, "programs": programs}

    monkeypatch.setattr(table, "plan", fake)
    for _ in range(2):
        config = {"30b-a3b": sft.get_config("tiny")}
        summary = table.write(str(tmp_path / "PLANS.md"), dict.fromkeys(table.STAGES, config))
    training = ["train", "train, packed", "train", "train"]  # SFT, SFT, MPO, GSPO
    assert asked == [*training, "prefill", "decode", "decode", "serve", "rollout"]
    assert (summary["plans"], summary["fit"]) == (9, 8)
    rows = [line for line in (tmp_path / "PLANS.md").read_text().splitlines() if line.startswith("| 30b-a3b")]
    assert len(rows) == 9 and "too large" in rows[4] and all("50.0%" in row for row in rows[:4])
    assert "1.25 | 7, 3.0" in rows[5] and "16 rows" in rows[6] and "data=2 -> tensor=2" in rows[8]


def test_what_fits_on_no_chip_is_kept_by_its_host():
    """Of the 38B in rows of 32,768 tokens: layer inputs alone fit, and of the rest what the host has room for."""
    config, where = sft.get_config("38b"), Topology.parse(table.TRAINING["38b"])
    first, last = training_layouts(config, where)
    assert (first["remat"], first["offload"], last["remat"], last["offload"]) == ("full", "attention", "full", "none")
    text, vision = config.model.text, config.model.vision
    kept = text.layers * 32768 * (text.width + text.heads * 128) + vision.layers * 96 * 1025 * vision.width
    assert offloaded(config, "attention") == 2 * kept < where.chip.host_memory < offloaded(config, "qkv")
    # Beside the kernel's results on the chip, queries, keys and values for half a row.
    more = text.layers * 32768 * (text.width + (text.heads + 2 * text.kv_heads) * 128)
    more += vision.layers * 96 * 1025 * vision.width
    assert offloaded(config, "qkv", 0.5, beside="attention") == more
