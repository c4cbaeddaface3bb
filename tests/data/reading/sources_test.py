"""Meta files and annotations: what is read, and one sentence with file and line for each thing that is wrong."""

import dataclasses
import json
import os

import numpy as np
import pytest

from internvl_jax.data.reading import sources
from internvl_jax.errors import InputError

ENTRY = {"root": "images", "annotation": "a.jsonl", "data_augment": True, "repeat_time": 0.5, "length": 7}
DATASET = sources.Dataset("d", "images", "a.jsonl", False, None, 1, None)
TURNS = [{"from": "human", "value": "<image>\nhi"}, {"from": "gpt", "value": "ho"}]


def meta_of(tmp_path, text):
    path = tmp_path / "meta.json"
    path.write_text(text)
    return str(path)


def test_meta(tmp_path):
    path = meta_of(tmp_path, json.dumps({"one": ENTRY, "two": {**ENTRY, "max_dynamic_patch": 6, "repeat_time": 3}}))
    one, two = sources.read_meta(path)
    assert one == sources.Dataset("one", "images", "a.jsonl", True, None, 0.5, 7)
    assert two == sources.Dataset("two", "images", "a.jsonl", True, 6, 3, 7)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not valid JSON"),
        ("[]", "holds a list, not a JSON object"),
        ("{}", "lists no data set"),
        ('{"a": 3}', "data set 'a' is 3; it must be an object"),
        ('{"a": {}, "a": {}}', "'a' stands there twice"),
        (json.dumps({"a": {**ENTRY, "max_tiles": 3}}), "'a' .*unknown key 'max_tiles'; known are root"),
        (json.dumps({"a": {"root": ""}}), r"lacks data set 'a'\.annotation"),
        (json.dumps({"a": {**ENTRY, "repeat_time": "2"}}), r"'a'\.repeat_time is '2'; it must be a number above 0"),
        (json.dumps({"a": {**ENTRY, "repeat_time": True}}), r"'a'\.repeat_time is True; it must be a number"),
        (json.dumps({"a": {**ENTRY, "data_augment": 1}}), r"'a'\.data_augment is 1; it must be true or false"),
        (json.dumps({"a": {**ENTRY, "repeat_time": 0}}), r"'a'\.repeat_time is 0; it must be a number above 0"),
        (json.dumps({"a": {**ENTRY, "repeat_time": 1e308}}), r"'a'\.repeat_time is 1e\+308"),
        (json.dumps({"a": {**ENTRY, "repeat_time": 10**9}}), "it must be a number above 0 and at most 10,000"),
        (json.dumps({"a": {**ENTRY, "repeat_time": float("nan")}}), "is not valid JSON"),
        (
            json.dumps({"a": {**ENTRY, "max_dynamic_patch": -1}}),
            "max_dynamic_patch is -1; it must be a whole number",
        ),
        (json.dumps({"a": {**ENTRY, "max_dynamic_patch": 10**8}}), "max_dynamic_patch is 100000000; it must be"),
        (
            json.dumps({"a": {**ENTRY, "root": "images\0"}}),
            r"'a'\.root is 'images\\x00'; .*without NUL",
        ),
    ],
)
def test_bad_meta(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        sources.read_meta(meta_of(tmp_path, text))


def test_missing_meta(tmp_path):
    with pytest.raises(InputError, match=r"none\.json is not there"):
        sources.read_meta(str(tmp_path / "none.json"))


@pytest.mark.parametrize("block", [1, 3, 1 << 20])
@pytest.mark.parametrize("end", ["", "\n", "\n\n \n"])
def test_lines_are_found(tmp_path, monkeypatch, block, end):
    """Any line is read by its offsets, whatever the blocks of the scan and the end of the file."""
    monkeypatch.setattr(sources, "_BLOCK_BYTES", block)
    path, lines = tmp_path / "a.jsonl", ["eins", "", "zwei ü", "3"]
    path.write_text("\n".join(lines) + end, encoding="utf-8")
    offsets, _ = sources.scan_lines(str(path))
    got = [sources.read_span(str(path), *offsets[k : k + 2]).decode() for k in range(len(offsets) - 1)]
    assert [line.strip() for line in got] == lines
    assert offsets.dtype == np.int64


@pytest.mark.parametrize("text", ["", "\n\n"])
def test_empty_annotation(tmp_path, text):
    (tmp_path / "a.jsonl").write_text(text)
    with pytest.raises(InputError, match=r"a\.jsonl has no samples"):
        sources.scan_lines(str(tmp_path / "a.jsonl"))


def test_missing_annotation(tmp_path):
    with pytest.raises(InputError, match=r"a\.jsonl cannot be read: No such file"):
        sources.scan_lines(str(tmp_path / "a.jsonl"))


@pytest.mark.parametrize(
    ("fields", "images", "sizes"),
    [
        ({}, (), ()),
        ({"image": ""}, (), ()),
        ({"image": None}, (), ()),
        ({"image": []}, (), ()),
        ({"image": "x.png"}, ("images/x.png",), (None,)),
        ({"image": "x.png", "width": 3, "height": 5}, ("images/x.png",), ((3, 5),)),
        ({"image": "x.png", "width": 3, "height": None}, ("images/x.png",), (None,)),
        ({"image": "x.png", "width": 3, "height": -1}, ("images/x.png",), (None,)),
        ({"image": ["x.png", "y.png"]}, ("images/x.png", "images/y.png"), (None, None)),
        (
            {"image": ["x.png", "y.png"], "width_list": [3, 7], "height_list": [5, 11]},
            ("images/x.png", "images/y.png"),
            ((3, 5), (7, 11)),
        ),
    ],
)
def test_record(fields, images, sizes):
    line = json.dumps({"id": 1, "conversations": TURNS, **fields}).encode()
    record = sources.parse_record(line, "a.jsonl:1", DATASET)
    assert record == sources.Record("a.jsonl:1", (TURNS,), images, sizes)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "is not valid JSON"),
        (b'{"conversations": "\xff"}', "is not valid JSON"),
        (b"[]", r"is \[\]; a sample is a JSON object"),
        (b"null", "is None; a sample is a JSON object"),
        (b"{}", 'has no "conversations"'),
        (b'{"conversations": []}', 'has no "conversations"'),
        (b'{"conversations": [{"from": "human"}]}', "turn 0 must be an object"),
        (b'{"video": "v.mp4", "conversations": []}', 'has no "conversations"'),
        (json.dumps({"video": "v.mp4", "image": "x.png", "conversations": TURNS}).encode(), "has an image and a video"),
        (json.dumps({"image": 3, "conversations": TURNS}).encode(), 'has an "image" that is neither a path nor'),
        (
            json.dumps({"image": ["x"], "width_list": [1, 2], "height_list": [1], "conversations": TURNS}).encode(),
            'has a "width_list" or "height_list" without one number for each of its images',
        ),
    ],
)
def test_bad_record(line, message):
    with pytest.raises(InputError, match=rf"^a\.jsonl:3 {message}"):
        sources.parse_record(line, "a.jsonl:3", DATASET)


def test_relative_paths_count_from_the_working_directory_or_else_from_the_meta_file(tmp_path, monkeypatch):
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there / "pictures"):
        folder.mkdir(parents=True)
    (there / "a.jsonl").write_text("{}")
    entries = {"a": {"root": "pictures", "annotation": "a.jsonl"}, "b": {"root": "", "annotation": "a.jsonl"}}
    path = meta_of(there, json.dumps(entries))
    monkeypatch.chdir(here)
    for dataset, root in zip(sources.read_meta(path), (f"{there}/pictures", f"{there}/"), strict=True):
        assert (dataset.annotation, dataset.root) == (f"{there}/a.jsonl", root)
    (here / "a.jsonl").write_text("{}")
    (here / "pictures").mkdir()
    for dataset, root in zip(sources.read_meta(path), ("pictures", ""), strict=True):
        assert (dataset.annotation, dataset.root) == ("a.jsonl", root)


def test_a_missing_annotation_names_both_places(tmp_path):
    dataset = sources.read_meta(meta_of(tmp_path, json.dumps({"a": {"root": "", "annotation": "none/a.jsonl"}})))[0]
    with pytest.raises(InputError, match=f"file none/a.jsonl cannot be read.*, nor is {tmp_path}/none/a.jsonl there"):
        sources.scan_lines(dataset.annotation, dataset.beside)


@pytest.mark.parametrize(
    ("root", "path", "wanted"),
    [
        ("images", "a/b.png", "images/a/b.png"),
        ("images", "a/../b.png", "images/a/../b.png"),
        ("images/", "..b.png", "images/..b.png"),
        ("/data/images", "/data/images/b.png", "/data/images/b.png"),
        ("/", "/etc/b.png", "/etc/b.png"),
        ("", "../b.png", "../b.png"),  # no root is given
        ("", "/etc/b.png", "/etc/b.png"),
        ("images", "../b.png", None),
        ("images", "a/../../images2/b.png", None),
        ("images", "/etc/passwd", None),
        ("/data/images", "/data/images2/b.png", None),
        ("/data/images", "..", None),
    ],
)
def test_images_stay_below_a_root_that_is_given(root, path, wanted):
    dataset = dataclasses.replace(DATASET, root=root)
    if wanted is None:
        with pytest.raises(InputError, match=r"^a.jsonl:1 has the image '.*', which is not below the root '.*images'"):
            sources.resolve(path, "a.jsonl:1", dataset)
        free = dataclasses.replace(dataset, allow_outside_root=True)
        wanted = os.path.join(root, path)
        assert sources.resolve(path, "a.jsonl:1", free) == wanted
    else:
        assert sources.resolve(path, "a.jsonl:1", dataset) == wanted
