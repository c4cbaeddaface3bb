"""Model directories: what is saved is loaded, wholly or not at all, and never something else."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from internvl_jax.errors import InputError
from internvl_jax.inference import Engine, Ladders, Vocabulary, fingerprint, load, save_model, weights_digest
from internvl_jax.models import LanguageHalf, VisionHalf
from internvl_jax.sharding import PRESETS, flatten, make_mesh
from internvl_jax.sharding.checked import StoredArray
from internvl_jax.sharding.params_io import write_params


@pytest.fixture(scope="module")
def saved(tmp_path_factory, params, config, processor):
    directory = tmp_path_factory.mktemp("saved") / "model"
    save_model(directory, params, config, processor)
    return directory


def test_what_is_saved_is_loaded(saved, params, config, processor):
    model, loaded = load(saved, "float32")
    got = flatten(model)
    assert got.keys() == params.keys() and model.config == config
    assert all(np.array_equal(got[path], params[path]) for path in params)
    assert loaded.to_dict() == processor.to_dict() and loaded.tokenizer.digest == processor.tokenizer.digest
    assert sorted(path.name for path in saved.parent.iterdir()) == ["model"]


def test_loading_casts_and_places(saved, params):
    mesh = make_mesh({"fsdp": 4, "data": 2})
    model, _ = load(saved, "bfloat16", mesh=mesh, rules=PRESETS["fsdp"])
    up = flatten(model)["lm.layers.mlp.up.weight"]
    assert up.dtype == jnp.bfloat16 and up.addressable_shards[0].data.shape == (3, 53, 10)
    np.testing.assert_array_equal(up, params["lm.layers.mlp.up.weight"].astype(jnp.bfloat16))
    assert model.runtime.dtype == jnp.bfloat16


def test_a_mesh_axis_that_spreads_nothing_is_refused(saved):
    with pytest.raises(
        InputError, match=r"tensor=2: the rules 'fsdp' .* take rules that do \(fsdp_tp, moe, long_context, serve_tp\)"
    ):
        load(saved, mesh=make_mesh({"fsdp": 4, "tensor": 2}), rules="fsdp")


def test_the_model_is_callable(saved):
    model, processor = load(saved, "float32")
    inputs = processor([{"role": "user", "content": "hello"}])
    tokens_BT = inputs.tokens_T[None]
    T = tokens_BT.shape[1]
    ones_BT, positions_BT = np.ones((1, T), np.int32), np.arange(T)[None]
    out = jax.jit(model)(tokens_BT, inputs.tiles_GHWC, np.ones(0, bool), ones_BT, positions_BT)
    assert model.logits(out.hidden_BTD).shape == (1, T, model.config.text.vocab)


@pytest.mark.parametrize(("part", "kind"), [("vision", VisionHalf), ("language", LanguageHalf)])
def test_a_half_is_loaded_alone(saved, params, part, kind, monkeypatch):
    """Nothing of the other half is read, on one device or on a mesh."""
    names, read = set(), StoredArray.read
    monkeypatch.setattr(StoredArray, "read", lambda self, *given: (names.add(self._name), read(self, *given))[1])
    wanted = {path: leaf for path, leaf in params.items() if path.startswith("lm.") == (part == "language")}
    model, _ = load(saved, "float32", part=part)
    spread, _ = load(saved, "float32", make_mesh({"fsdp": 4}, jax.devices()[:4]), "fsdp", part)
    assert type(model) is type(spread) is kind and names == wanted.keys()
    assert any(leaf.addressable_shards[0].data.size == leaf.size // 4 for leaf in flatten(spread).values())
    for each in (model, spread):
        found = flatten(each)
        assert found.keys() == wanted.keys()
        assert all(np.array_equal(found[path], wanted[path]) for path in wanted)


def test_a_vision_half_lies_on_meshes_that_no_head_of_the_other_divides(saved, params):
    mesh = make_mesh({"tensor": 4}, jax.devices()[:4])
    with pytest.raises(InputError, match="6 heads can't be shared by tensor=4"):
        load(saved, "float32", mesh, part="language")
    model, _ = load(saved, "float32", mesh, part="vision")
    qkv = flatten(model)["vit.layers.attn.qkv.weight"]
    assert qkv.addressable_shards[0].data.size == qkv.size // 4
    np.testing.assert_array_equal(qkv, params["vit.layers.attn.qkv.weight"])


def test_what_is_wrong_with_the_other_half_is_found(saved, tmp_path):
    wrong = broken(saved, tmp_path, lambda values: values["model"]["text"].update(layers=5))
    with pytest.raises(InputError, match=r"lm\.layers\.attn\.k\.weight is \(3, .*, not \(5, "):
        load(wrong, "float32", part="vision")
    with pytest.raises(InputError, match="part is 'tower'; use one of all, vision, language"):
        load(saved, "float32", part="tower")


def test_halves_of_one_model_know_each_other(saved, tmp_path, config):
    halves = [load(saved, "float32", part=part) for part in ("vision", "language")]
    one, other = (fingerprint(*half) for half in halves)
    assert one == other == fingerprint(*load(saved, "float32"))
    (vision, processor), (language, _) = halves
    image = dataclasses.replace(processor.image_config, max_tiles=5)
    assert fingerprint(language, dataclasses.replace(processor, image_config=image)) != one
    assert fingerprint(*load(saved, "bfloat16", part="language")) != one
    text = dataclasses.replace(config.text, rope_theta=7.0)
    language.config = dataclasses.replace(config, text=text)
    assert fingerprint(language, processor) != one
    mesh = make_mesh({"tensor": 2}, jax.devices()[:2])
    digests = {weights_digest(load(saved, "float32")[0])}
    digests.add(weights_digest(load(saved, "float32", mesh, part="vision")[0]))
    assert digests == {weights_digest(vision)}
    vision.projector.fc1.bias.set_value(vision.projector.fc1.bias[...] + 1)
    assert weights_digest(vision) not in digests


def test_a_workdir_gives_its_last_whole_step(saved, params, tmp_path):
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((saved / name).read_bytes())
    for step, shift in ((9, 1.0), (10, 2.0)):
        shifted = {path: leaf + shift if path == "vit.cls" else leaf for path, leaf in params.items()}
        write_params(tmp_path / "checkpoints" / str(step), shifted)
    (tmp_path / "checkpoints" / "11.orbax-checkpoint-tmp").mkdir()
    model, _ = load(tmp_path, "float32")
    np.testing.assert_array_equal(flatten(model)["vit.cls"], params["vit.cls"] + 2)


def broken(saved, tmp_path, change):
    """A copy of the files with another config."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((saved / name).read_bytes())
    (tmp_path / "params").symlink_to(saved / "params")
    values = json.loads((saved / "config.json").read_text())
    change(values)
    (tmp_path / "config.json").write_text(json.dumps(values))
    return tmp_path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v["model"]["text"].update(layers=5), r"lm\.layers\.attn\.k\.weight is \(3, .*, not \(5, "),
        (lambda v: v["model"]["text"].update(tie_embeddings=True), "lm.head.weight is not of this model"),
        (lambda v: v["model"]["vision"].update(qk_norm=True), "vit.layers.attn.k_norm.scale is missing"),
        (lambda v: v["model"].update(image_token_id=3), "IMG_CONTEXT"),
        (lambda v: v["processor"]["image"].update(tokens_per_tile=9), "tokens of a tile"),
        (lambda v: v["model"]["text"].pop("mlp"), "mlp"),
        (lambda v: v.update(format=7), "format 1"),
        (lambda v: v.update(processor=None), "tokenizer files"),
    ],
)
def test_a_directory_that_does_not_fit(saved, tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        load(broken(saved, tmp_path, change), "float32")


def test_missing_directories_and_types(saved, tmp_path):
    with pytest.raises(InputError, match=r"config\.json is not there"):
        load(tmp_path / "nowhere")
    with pytest.raises(InputError, match="float8"):
        load(saved, "float8")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="is not valid JSON"):
        load(tmp_path)


def test_nothing_is_left_of_a_save_that_fails(saved, params, config, processor, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="already exists"):
        save_model(saved, params, config, processor)
    fewer = {path: leaf for path, leaf in params.items() if path != "vit.cls"}
    with pytest.raises(InputError, match=r"vit\.cls"):
        save_model(tmp_path / "a", fewer, config, processor)
    with pytest.raises(InputError, match="IMG_CONTEXT"):
        save_model(tmp_path / "b", params, dataclasses.replace(config, image_token_id=1), processor)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(processor.tokenizer), "save", full)
    with pytest.raises(OSError, match="No space"):
        save_model(tmp_path / "c", params, config, processor)
    assert list(tmp_path.iterdir()) == []


def test_a_half_in_8_bits_reads_what_the_other_makes_and_says_what_it_can_not_keep(saved):
    model, processor = load(saved, "float32", part="language", quantise="int8", cache="float8", skip_blocks=False)
    assert model.runtime.cache == "float8" and not model.runtime.skip_blocks
    assert flatten(model)["lm.layers.attn.q.weight.int8"].dtype == jnp.int8
    assert fingerprint(model, processor) == fingerprint(load(saved, "float32", part="vision")[0], processor)
    vocabulary = Vocabulary(model.config.text.vocab, (), ())
    with pytest.raises(InputError, match="rows that have pages keep no float8 keys and values"):
        Engine(model, vocabulary, Ladders(classes=((2, 64),), page=16))
    with pytest.raises(InputError, match="cache is 'int4'; use one of float8"):
        load(saved, cache="int4")
