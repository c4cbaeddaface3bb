"""What comes from outside: JSON with its limits, typed fields, bounds of configs, archives of arrays."""

import dataclasses
import json
from typing import Annotated, Literal

import msgspec
import numpy as np
import pytest
from msgspec import Meta

from internvl_jax import validation
from internvl_jax.errors import InputError
from internvl_jax.validation import Count, Fields, Fraction, Positive


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b'\xef\xbb\xbf{"a": 1}', {"a": 1}),
        (b'{"a": "\\ud83d\\ude00 \\u2028"}', {"a": "\N{GRINNING FACE} \u2028"}),
        (b"[" * validation.MAX_DEPTH + b"]" * validation.MAX_DEPTH, ...),
        (b'{"a": 1, "a": 2}', {"a": 2}),
        (b"12345678901234567890123", 12345678901234567890123),
        (b"-0.1", -0.1),
    ],
)
def test_json_is_read(text, value):
    read = validation.parse_json(text, "file:3")
    assert value is ... or (read == value and type(read) is type(value))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "is not valid JSON"),
        (b"{'a': 1}", "is not valid JSON"),
        (b'{"a": 1} {"a": 2}', "is not valid JSON"),
        (b'{"a": "\xff"}', "is not valid JSON: it is not UTF-8, as byte 0xff at position 7 shows"),
        (b'{"a": "\\ud83d cut"}', r"half of a surrogate pair, '\\ud83d'"),
        (b'{"a": "cut \\ude00"}', r"half of a surrogate pair, '\\ude00'"),
        (b'{"a": NaN}', "is not valid JSON"),
        (b'{"a": -Infinity}', "is not valid JSON"),
        (b'{"a": 1e999}', "out of range"),
        (b"1" * 5000, "out of range"),
        (b"[" * (validation.MAX_DEPTH + 1) + b"]" * (validation.MAX_DEPTH + 1), "nested more than 64 deep"),
        (b"[" * 100_000 + b"]" * 100_000, "nested more than 64 deep"),
        (b'{"a":' * 100_000, "nested more than 64 deep"),
        (b'{"b": [{"a": 1, "a": 2}]}', "'a' stands there twice"),
    ],
)
def test_broken_json_is_one_sentence(text, message):
    with pytest.raises(InputError, match=f"^file:3.*{message}") as error:
        validation.parse_json(text, "file:3", unique=True)
    assert len(str(error.value)) < 300 and "\n" not in str(error.value)


def test_only_newlines_end_a_line(tmp_path):
    texts = ["a\u2028b", "c\u0085d", "e\x0bf\x0cg", "h\ri"]
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + "\n\n".join(json.dumps(text, ensure_ascii=False) for text in texts).encode())
    assert list(validation.read_lines(path)) == [(f"{path}:{1 + 2 * i}", text) for i, text in enumerate(texts)]


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "list.json").write_text("[]")
    for path, message in [
        ("none.json", "is not there; look again"),
        (".", r"can't be read \(Is a directory\); look again"),
        ("a\0b", "is no path of a file"),
        ("list.json", "holds a list, not a JSON object; look again"),
    ]:
        with pytest.raises(InputError, match=message):
            validation.read_json(f"{tmp_path}/{path}", "look again")


@dataclasses.dataclass(frozen=True)
class Part:
    pattern: Annotated[str, Meta(min_length=1)]
    rate: Positive = 1.0


@dataclasses.dataclass
class Whole:
    number: Count = 1
    share: Fraction = 0.5
    kind: Literal["x", "y"] = "x"
    limit: Count | None = None
    parts: tuple[Part, ...] = (Part("a"),)
    other: Part | None = None


def test_fields_within_their_bounds_pass():
    for change in ({}, {"limit": 3}, {"share": 1}, {"parts": ()}, {"other": Part("b", 2)}):
        validation.check_fields(Whole(**change), "run")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"number": 0}, r"run\.number is 0; it must be a whole number from 1 to 1,099,511,627,776\."),
        ({"number": True}, r"run\.number is True"),
        ({"number": 1.0}, r"run\.number is 1\.0"),
        ({"number": "1"}, r"run\.number is '1'"),
        ({"number": None}, r"run\.number is None"),
        ({"number": 10**30}, r"run\.number is 1000"),
        ({"share": float("nan")}, r"run\.share is nan; it must be a number from 0 to 1\."),
        ({"share": float("-inf")}, r"run\.share is -inf"),
        ({"kind": "z"}, r"run\.kind is 'z'; it must be 'x' or 'y'\."),
        ({"limit": 0}, r"run\.limit is 0; it must be a whole number from 1 to .* or null\."),
        ({"parts": (Part("a"), Part(""))}, r"run\.parts\[1\]\.pattern is ''; it must be a text that isn't empty\."),
        ({"parts": (Part("a", -1),)}, r"run\.parts\[0\]\.rate is -1; it must be a number above 0"),
        ({"parts": ("a",)}, r"run\.parts\[0\] is 'a'; it must be the fields of Part\."),
        ({"parts": "a"}, r"run\.parts is 'a'; it must be a list of the fields of Part\."),
        ({"other": 3}, r"run\.other is 3; it must be the fields of Part or null\."),
        ({"other": (Part("b"),)}, r"run\.other is \(Part.*; it must be the fields of Part or null\."),
        ({"other": Part("b", float("inf"))}, r"run\.other\.rate is inf"),
        ({"kind": "z" * 10_000}, r"run\.kind is 'z{79}\.\.\. \(10002 characters\)"),
    ],
)
def test_fields_out_of_bounds_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        validation.check_fields(Whole(**change), "run")


def test_numbers_of_arrays_and_lists_are_taken_as_what_they_are():
    validation.check_fields(Whole(np.int64(3), np.float32(0.5), limit=np.int32(2), parts=[Part("a")]), "run")
    with pytest.raises(InputError, match=r"run\.share is "):
        validation.check_fields(Whole(share=np.float64("nan")), "run")


def test_a_typo_in_a_field_of_a_text_is_refused():
    kind = tuple[Part, ...]
    assert validation.read_text('[{"pattern": "a", "rate": 2}]', kind, "groups") == (Part("a", 2.0),)
    for text, message in [
        ('[{"pattern": "a", "rte": 2}]', r"groups\[0\] has an unknown field 'rte' \(did you mean 'rate'\?\)"),
        ('[{"pattern": "a", "pattern": "b"}]', "'pattern' stands there twice"),
        ('["\udcff"]', "half of a surrogate pair"),
        ('[{"pattern": "a", "rate": "2"}]', "groups is .*got `str`"),
        ('[{"pattern": "a", "rate": true}]', "groups is .*got `bool`"),
    ]:
        with pytest.raises(InputError, match=message):
            validation.read_text(text, kind, "groups")


def test_fields_of_an_object():
    fields = Fields("f.json", "", {"a": {"whole": 3, "none": None}, "b": [1]})
    part = fields.part("a")
    assert part.get("whole", int) == 3 and isinstance(part.get("whole", float), float)
    assert part.optional("none", int, 7) == part.optional("absent", int, 7) == 7
    for call, message in [
        (lambda: part.get("absent", int), r"f\.json lacks a\.absent"),
        (lambda: part.get("none", int), r"f\.json: a\.none is None; it must be a whole number\."),
        (lambda: part.optional("whole", str), r"f\.json: a\.whole is 3; it must be a text\."),
        (lambda: fields.part("b"), r"f\.json: b is \[1\]; it must be an object\."),
        (lambda: part.expect("whole", 4), r"f\.json: a\.whole is 3, but only 4 is supported"),
    ]:
        with pytest.raises(InputError, match=message):
            call()


class Entry(msgspec.Struct):
    id: Annotated[int, Meta(ge=0)]
    names: list[str] = []


def test_objects_become_structs():
    assert validation.convert([{"id": 3, "more": 1}], list[Entry], "here") == [Entry(3)]
    for value, message in [
        ([{"id": -1}], r"here\[0\]\.id is -1; it must be a whole number >= 0"),
        ([{"id": 1, "names": ["a", 2]}], r"here\[0\]\.names\[1\] is 2; it must be a text"),
        ([{}], r"here\[0\] lacks the field 'id'"),
        (3, "here is 3; it must be a list of the fields of Entry"),
    ]:
        with pytest.raises(InputError, match=message):
            validation.convert(value, list[Entry], "here")


def test_build_wants_every_field_and_no_other():
    assert validation.build(Part, {"pattern": "a", "rate": 2.0}, "part") == Part("a", 2.0)
    for values, message in [
        (3, "part is 3, not an object"),
        ({"pattern": "a"}, r"part lacks the fields \['rate'\]"),
        ({"pattern": "a", "rate": 1, "speed": 2}, r"part has unknown fields \['speed'\]"),
    ]:
        with pytest.raises(InputError, match=message):
            validation.build(Part, values, "part")


def test_arrays_of_an_archive(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, numbers=np.arange(3), text=np.array("hm"))
    found = validation.read_arrays(path, {"numbers": "i1"}, {"text": "U0", "more": "f2"})
    assert sorted(found) == ["numbers", "text"] and found["numbers"].tolist() == [0, 1, 2]
    whole = path.read_bytes()
    with pytest.raises(InputError, match="has numbers of kind i1 instead of f1"):
        validation.read_arrays(path, {"numbers": "f1"})
    with pytest.raises(InputError, match="has no array 'more'"):
        validation.read_arrays(path, {"more": "f2"})
    np.savez(path, numbers=np.array([{}], dtype=object))
    with pytest.raises(InputError, match=r"can't be read \(Object arrays"):
        validation.read_arrays(path, {"numbers": "i1"})
    for damaged in (b"", b"PK\3\4", b"x" * 99, whole[:-30], whole[:60] + b"\0" * 9 + whole[69:]):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"a\.npz can't be read"):
            validation.read_arrays(path, {"numbers": "i1"})


def test_a_file_that_is_not_there_names_the_nearest_one(tmp_path):
    (tmp_path / "models" / "8b").mkdir(parents=True)
    (tmp_path / "models" / "8b" / "config.json").write_text("{}")
    (tmp_path / "models" / "8b" / "configs").mkdir()
    for path, found in (("model/8b/config.json", "'models'"), ("models/8b/confg.json", "'config.json'")):
        with pytest.raises(InputError, match=rf"{path} is not there \(did you mean {found}\?\); check the path"):
            validation.read_json(tmp_path / path)
    with pytest.raises(InputError, match=r"nothing\.json is not there; check the path"):
        validation.read_json(tmp_path / "nothing.json")


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("3", int, 3),
        ("1e-3", float, 1e-3),
        ("true", bool, True),
        ("3", str, "3"),
        ("none", str, "none"),
        ("null", int | None, None),
        ("[1, 2]", tuple[int, ...], (1, 2)),
    ],
)
def test_texts_are_read_as_the_type_that_a_field_has(text, kind, value):
    assert validation.read_text(text, kind, "x") == value


@pytest.mark.parametrize(
    ("text", "kind"), [("3.5", int), ("yes", bool), ("[1", tuple[int, ...]), ("nan", validation.Fraction)]
)
def test_a_text_of_another_type_is_one_sentence(text, kind):
    with pytest.raises(InputError, match=r"^x is "):
        validation.read_text(text, kind, "x")
