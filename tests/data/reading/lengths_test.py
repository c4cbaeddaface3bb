"""The length index: right, kept, renewed when anything that lengths depend on changes, never half-written."""

import dataclasses
import json

import numpy as np
import pytest

from internvl_jax import data
from internvl_jax.data.reading import lengths, samples, sources
from internvl_jax.errors import InputError


def datasets_of(tiny):
    return sources.read_meta(tiny.meta)


def no_measuring(monkeypatch):
    def refuse(self, index):
        raise AssertionError("measured although the index is kept")

    monkeypatch.setattr(samples.SampleReader, "measure", refuse)


@pytest.mark.parametrize("noted", [True, False])
def test_lengths_are_those_of_loaded_samples(tiny, processor, noted):
    if not noted:
        path = tiny.folder / "singles.jsonl"
        records = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps({**record, "width": None}) + "\n" for record in records))
    for dataset in datasets_of(tiny):
        index = lengths.length_index(dataset, processor, None)
        reader = samples.SampleReader(dataset, index.offsets, processor)
        loaded = [reader.load(k, np.random.default_rng(0)) for k in range(len(reader))]
        assert index.tokens.tolist() == [len(sample.tokens_T) for sample in loaded]
        assert index.tiles.tolist() == [len(sample.tiles_GHWC) for sample in loaded]
        assert not index.broken


def test_tile_limit_of_a_data_set_is_shared_among_images(tiny, processor):
    """`pairs` allows 4 tiles to two images: two each, and a thumbnail for each that has two."""
    pairs = datasets_of(tiny)[2]
    assert lengths.length_index(pairs, processor, None).tiles.tolist() == [2, 4, 4]
    assert lengths.length_index(dataclasses.replace(pairs, max_tiles=1), processor, None).tiles.tolist() == [2, 2, 2]


def test_index_is_kept(tiny, processor, tmp_path, monkeypatch):
    dataset, cache = datasets_of(tiny)[1], str(tmp_path / "cache")
    first = lengths.length_index(dataset, processor, cache)
    no_measuring(monkeypatch)
    again = lengths.length_index(dataset, processor, cache)
    for one, other in zip(dataclasses.astuple(first), dataclasses.astuple(again), strict=True):
        np.testing.assert_array_equal(one, other)
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".npz"]


@pytest.mark.parametrize("change", ["annotation", "tile limit", "tokens per tile", "tokenizer", "template", "data set"])
def test_changes_need_another_index(tiny, processor, tmp_path, change):
    """A kept index that ignores image options plans rows that do not fit (a known fault elsewhere)."""
    dataset, cache = datasets_of(tiny)[1], str(tmp_path / "cache")
    before = lengths.length_index(dataset, processor, cache)
    if change == "annotation":
        path = tiny.folder / "singles.jsonl"
        path.write_text(path.read_text().replace("what?", "what is it?"))
    elif change == "data set":
        dataset = dataclasses.replace(dataset, max_tiles=1)
    else:
        image = processor.image_config
        options = {
            "tile limit": {"image_config": dataclasses.replace(image, max_tiles=3)},
            "tokens per tile": {"image_config": dataclasses.replace(image, tokens_per_tile=3)},
            "tokenizer": {"tokenizer": data.train_bpe(["nothing in common 0123"], 281)},
            "template": {"template": dataclasses.replace(processor.template, user_head="<|im_start|>U\n")},
        }
        processor = dataclasses.replace(processor, **options[change])
    after = lengths.length_index(dataset, processor, cache)
    assert (before.tokens.tolist(), before.tiles.tolist()) != (after.tokens.tolist(), after.tiles.tolist())
    fresh = lengths.length_index(dataset, processor, None)
    np.testing.assert_array_equal(after.tokens, fresh.tokens)


def test_broken_samples_are_named_and_tried_again(tiny, processor, tmp_path):
    path = tiny.folder / "texts.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    records[3]["image"] = "later.png"
    records[3]["conversations"][1]["value"] = "<image>"
    records[5]["conversations"][1]["value"] = "<image> without a picture"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    dataset, cache = datasets_of(tiny)[0], str(tmp_path / "cache")
    index = lengths.length_index(dataset, processor, cache)
    assert np.flatnonzero(index.tokens == 0).tolist() == [3, 5] == sorted(index.broken)
    assert "texts.jsonl:4: " in index.broken[3] and "later.png does not exist" in index.broken[3]
    assert "texts.jsonl:6: " in index.broken[5] and "<image>" in index.broken[5]
    tiny.picture("later.png", 8, 8)
    index = lengths.length_index(dataset, processor, cache)
    assert index.tiles[3] == 1 and list(index.broken) == [5]


def test_unreadable_index_is_computed_anew(tiny, processor, tmp_path, caplog):
    dataset, cache = datasets_of(tiny)[0], tmp_path / "cache"
    first = lengths.length_index(dataset, processor, str(cache))
    (path,) = cache.iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    again = lengths.length_index(dataset, processor, str(cache))
    np.testing.assert_array_equal(again.tokens, first.tokens)
    assert "cannot be used" in caplog.text
    with np.load(path) as file:
        assert set(file) == {"offsets", "tokens", "tiles", "digest"}


def test_index_that_cannot_be_written(tiny, processor, tmp_path, monkeypatch):
    """A full disk leaves nothing under the final name and nothing temporary."""
    cache = tmp_path / "cache"

    def full(file, **arrays):
        file.write(b"some of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(InputError, match="cannot be written: No space left on device"):
        lengths.length_index(datasets_of(tiny)[0], processor, str(cache))
    assert list(cache.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        lengths.length_index(datasets_of(tiny)[0], processor, str(tmp_path / "file" / "cache"))
