"""Released checkpoints load exactly, or not at all and with one sentence that names the tensors."""

import json
import re
import shutil
import signal
import subprocess
import sys

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from checkpoint_convert import conversion, convert, load_model, load_released, load_vision_tower
from checkpoint_convert.released import load_bare
from internvl_jax.data import train_bpe
from internvl_jax.errors import InputError
from internvl_jax.sharding import PRESETS, flatten, make_mesh

HEAD, EMBED = "language_model.lm_head.weight", "language_model.model.embed_tokens.weight"


def equal(found, wanted) -> bool:
    return found.keys() == wanted.keys() and all(np.array_equal(found[path], wanted[path]) for path in wanted)


@pytest.mark.parametrize("form", ["github", "hf"])
@pytest.mark.parametrize("qk_norm", [False, True])
def test_params_come_out_as_they_were_written(factory, form, qk_norm):
    config = factory.config(qk_norm=qk_norm)
    model = load_model(factory.released(form, config), "float32", image_token_id=41)
    assert model.config == config
    assert equal(flatten(model), factory.params(config))


@pytest.mark.parametrize("family", ["qwen3", "qwen3moe", "gptoss"])
def test_both_formats_of_one_model_are_the_same_params(golden, family):
    github = load_model(golden / f"chat_{family}_github", "float32", image_token_id=312)
    assert equal(flatten(load_model(golden / f"hf_{family}", "float32")), flatten(github))


def respell(tensors, *changes):
    for old, new in changes:
        tensors = {re.sub(old, new, name): array for name, array in tensors.items()}
    return tensors


@pytest.mark.parametrize("qk_norm", [False, True])
def test_names_as_the_public_converters_write_them(factory, qk_norm):
    config = factory.config(qk_norm=qk_norm)
    custom2hf = respell(
        factory.tensors("hf", config),
        (r"^language_model\.model\.", "language_model."),
        (r"^", "model."),
        (r"^model\.language_model\.lm_head", "lm_head"),
        (r"attention\.(._norm)", r"attn.\1"),
    )
    assert "model.vision_tower.embeddings.cls_token" in custom2hf and "lm_head.weight" in custom2hf
    model = load_model(factory.released("hf", config, custom2hf), "float32")
    assert equal(flatten(model), factory.params(config))

    hf2custom = respell(factory.tensors("github", config), (r"\.attn\.(._norm)", r".attention.\1"))
    model = load_model(factory.released("github", config, hf2custom), "float32", image_token_id=41)
    assert equal(flatten(model), factory.params(config))


def broken(tensors, kind):
    """One fault of each kind, and the tensors that the error has to name."""
    one, two = "language_model.model.layers.1.mlp.up_proj.weight", "multi_modal_projector.linear_1.bias"
    match kind:
        case "missing":
            del tensors[one], tensors[two]
        case "not expected":
            tensors |= {"language_model.model.layers.3.mlp.up_proj.weight": tensors[one], "extra": tensors[two]}
            one, two = "language_model.model.layers.3.mlp.up_proj.weight", "extra"
        case "of another shape":
            tensors |= {one: np.ascontiguousarray(tensors[one].T), two: tensors[two][:-1]}
        case "not finite":
            tensors[one][3, 2], tensors[two][-1] = np.nan, -np.inf
        case "given twice":
            tensors |= {f"model.{one.replace('model.', '', 1)}": tensors[one], f"model.{two}": tensors[two]}
    return tensors, (one, two)


@pytest.mark.parametrize("kind", ["missing", "not expected", "of another shape", "not finite", "given twice"])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
def test_one_error_names_every_tensor(factory, kind, dtype):
    tensors, names = broken(factory.tensors("hf", factory.config()), kind)
    tensors = {name: array.astype(dtype) for name, array in tensors.items()}
    directory = factory.released("hf", factory.config(), tensors)
    with pytest.raises(InputError, match=kind) as error:
        load_model(directory)
    message = str(error.value)
    assert all(name in message for name in names) and str(directory) in message
    assert "\n" not in message and "k_norm" not in message


def test_all_kinds_stand_in_one_error(factory):
    tensors = factory.tensors("hf", factory.config())
    for kind in ("not expected", "missing"):
        tensors, _ = broken(tensors, kind)
    tensors["language_model.model.norm.weight"] = np.zeros(3, np.float32)
    with pytest.raises(
        InputError, match=r"missing: .*; not expected: .*; of another shape: .*norm.weight: \[3\] instead"
    ):
        load_model(factory.released("hf", factory.config(), tensors))


@pytest.mark.parametrize("form", ["github", "hf"])
def test_tied_embeddings(factory, form):
    config = factory.config(tied=True)
    tensors = factory.tensors(form, config)
    assert HEAD not in tensors
    directory = factory.released(form, config)
    model = load_model(directory, "float32", image_token_id=41)
    assert "lm.head.weight" not in flatten(model) and model.lm.head_VD.shape == (53, 19)

    factory.released(form, config, tensors | {HEAD: tensors[EMBED].copy()})  # a second, equal one is left out
    assert equal(flatten(load_model(directory, "float32", image_token_id=41)), factory.params(config))

    factory.released(form, config, tensors | {HEAD: tensors[EMBED] + 1})
    with pytest.raises(InputError, match=r"ties the embeddings but language_model\.lm_head\.weight differs"):
        load_model(directory, image_token_id=41)

    factory.released(form, factory.config(), tensors)  # untied, but without an output matrix
    with pytest.raises(InputError, match=r"missing: language_model\.lm_head\.weight"):
        load_model(directory, image_token_id=41)


def test_dtype(factory):
    config = factory.config()
    model = load_model(factory.released("hf", config))
    assert model.runtime.dtype == jnp.bfloat16
    wanted = {path: array.astype(ml_dtypes.bfloat16) for path, array in factory.params(config).items()}
    assert all(array.dtype == jnp.bfloat16 for array in flatten(model).values())
    assert equal(flatten(model), wanted)


def test_sharded_reading_is_reading(golden):
    whole = flatten(load_model(golden / "hf_qwen3", "float32"))
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    params = flatten(load_model(golden / "hf_qwen3", "float32", mesh, PRESETS["fsdp_tp"]))
    assert equal({path: np.asarray(array) for path, array in params.items()}, whole)
    embed = params["lm.embed.weight"]
    assert embed.addressable_shards[0].data.shape == (320 // 2, 64 // 2)
    assert len(embed.sharding.device_set) == 8


def test_sharded_reading_of_experts(golden):
    whole = flatten(load_model(golden / "hf_qwen3moe", "float32"))
    mesh = make_mesh({"fsdp": 4, "expert": 2})
    params = flatten(load_model(golden / "hf_qwen3moe", "float32", mesh, PRESETS["fsdp"]))
    assert equal({path: np.asarray(array) for path, array in params.items()}, whole)
    assert params["lm.layers.mlp.experts.down.weight"].addressable_shards[0].data.shape == (3, 6 // 2, 64 // 4, 32)


@pytest.mark.parametrize("case", ["vit300m_github", "vit6b_github"])
def test_a_tower_alone(golden, case):
    assert flatten(load_vision_tower(golden / case, "float32"))["layers.attn.qkv.weight"].shape == (3, 3, 4, 16, 64)


def test_load_released_takes_the_image_token_from_the_tokenizer(factory):
    config = factory.config()
    values = factory.json("github", config) | {"min_dynamic_patch": 1, "max_dynamic_patch": 12, "use_thumbnail": True}
    directory = factory.released("github", config)
    (directory / "config.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match="has no tokenizer"):
        load_released(directory)
    tokenizer = train_bpe(["a b"], 280)
    tokenizer.save(directory)
    model, processor = load_released(directory, "float32")
    assert model.config.image_token_id == tokenizer.image_context == processor.tokenizer.image_context

    convert(directory, directory.parent / "ours")
    ours = json.loads((directory.parent / "ours" / "config.json").read_text())
    assert ours["model"] == model.config.to_dict() and ours["processor"] == processor.to_dict()
    assert (directory.parent / "ours" / "tokenizer.json").exists()


@pytest.mark.parametrize("case", ["chat_qwen3_github", "hf_qwen3", "hf_qwen3moe", "hf_gptoss", "vit6b_github"])
def test_orbax_holds_the_same_bits(golden, tmp_path, case):
    report = convert(golden / case, tmp_path / "a" / "ours")
    count = {"chat_qwen3_github": 74, "hf_qwen3": 82, "hf_qwen3moe": 124, "hf_gptoss": 117, "vit6b_github": 43}[case]
    assert (report.tensors, report.peak_rss > report.bytes, report.seconds > 0) == (count, True, True)
    assert json.loads(report.to_json())["bytes"] == report.bytes
    ours = load_bare(tmp_path / "a" / "ours", "float32", 312)
    released = load_bare(golden / case, "float32", 312)
    assert ours.config == released.config
    assert equal(flatten(ours), flatten(released))
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["ours"]


def test_bfloat16_stays_bfloat16(factory, tmp_path):
    tensors = {name: a.astype(ml_dtypes.bfloat16) for name, a in factory.tensors("hf", factory.config()).items()}
    convert(factory.released("hf", factory.config(), tensors), tmp_path / "ours")
    params = flatten(load_bare(tmp_path / "ours", "float32", None))
    wanted = {
        path: a.astype(ml_dtypes.bfloat16).astype(np.float32) for path, a in factory.params(factory.config()).items()
    }
    assert equal(params, wanted)


def test_bad_input_leaves_nothing(factory, tmp_path):
    tensors, _ = broken(factory.tensors("hf", factory.config()), "not finite")
    with pytest.raises(InputError, match="not finite"):
        convert(factory.released("hf", factory.config(), tensors), tmp_path / "ours")
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_a_destination_in_use_is_kept(golden, tmp_path):
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "notes").write_text("mine")
    with pytest.raises(InputError, match="already exists"):
        convert(golden / "vit6b_github", tmp_path / "ours")
    assert (tmp_path / "ours" / "notes").read_text() == "mine"


def test_a_disk_without_room_is_noticed_before_writing(golden, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(InputError, match="make room"):
        convert(golden / "vit6b_github", tmp_path / "ours")
    assert not list(tmp_path.iterdir())


def halved(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize(
    ("form", "damage", "message"),
    [
        (
            "released",
            lambda source: halved(source / "model.safetensors"),
            "model.safetensors changed while it was read",
        ),
        ("released", lambda source: (source / "model.safetensors").unlink(), "model.safetensors changed while"),
        ("released", lambda source: (source / "vocab.json").mkdir(), "vocab.json can't be read"),
        ("orbax", lambda source: halved(largest(source)), r"source.params is damaged or incomplete \(OUT_OF_RANGE"),
    ],
)
def test_a_source_that_breaks_meanwhile_is_called_so(golden, tmp_path, monkeypatch, form, damage, message):
    source = tmp_path / "source"
    if form == "orbax":
        convert(golden / "vit300m_github", source)
    else:
        source.mkdir()
        for name in ("config.json", "model.safetensors"):
            (source / name).write_bytes((golden / "vit300m_github" / name).read_bytes())
    opened = conversion._open
    monkeypatch.setattr(conversion, "_open", lambda directory: (opened(directory), damage(directory))[0])
    with pytest.raises(InputError, match=message) as caught:
        convert(source, tmp_path / "out", "github")
    assert "make room" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def largest(directory):
    return max((path for path in directory.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


# The process is killed when it has written so many slices.
KILLED = """
import os, signal, sys
from checkpoint_convert import conversion, convert

def all_finite(array, left=[int(sys.argv[1])], original=conversion.all_finite):
    left[0] -= 1
    if left[0] < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(array)

conversion.all_finite = all_finite
convert(*sys.argv[2:])
"""


@pytest.mark.parametrize(("to", "slices"), [("orbax", 0), ("orbax", 17), ("hf", 0), ("hf", 40), ("hf", 73)])
def test_killed_it_leaves_nothing_under_the_name_and_can_run_again(golden, tmp_path, to, slices):
    arguments = [str(golden / "chat_qwen3_github"), str(tmp_path / "ours"), to]
    command = [sys.executable, "-c", KILLED, str(slices), *arguments]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir()] == ["ours.partial"]
    convert(*arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]


@pytest.mark.parametrize("to", ["orbax", "github"])
def test_a_disk_that_fills_up_while_writing(golden, tmp_path, to):
    """A limit on the size of files stands for the full disk; the launcher says so in one line."""
    flags = f"--src={golden}/vit6b_github --dst={tmp_path}/ours --to={to}"
    command = f"ulimit -f 100; exec {sys.executable} -m launch.convert {flags}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith("error: writing ")
    assert not list(tmp_path.iterdir())
