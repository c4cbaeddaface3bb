"""Tables of benchmarks: what is read of them, and what is refused in a sentence."""

import base64
import csv
import io

import PIL.Image
import pytest

from internvl_jax.errors import InputError
from internvl_jax.evaluation import get_suite, open_suite, read_table
from internvl_jax.evaluation.suites import tsv
from tests import forks

HEADER = ["index", "image", "question"]


def encoded(colour="red", kind="PNG", size=(64, 64)):
    buffer = io.BytesIO()
    PIL.Image.new("RGB", size, colour).save(buffer, format=kind)
    return base64.b64encode(buffer.getvalue()).decode()


def write(path, rows):
    """A table with what needs quotes in quotes."""
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter="\t", lineterminator="\n").writerows(rows)
    return path


def test_cells_may_hold_anything(tmp_path):
    text = 'a\ttab, a\nline, "quotes" and 中文'
    rows = [["index", "image", "question"], ["x1", encoded(), text], ["x2", "x1", '"'], ["x3", "", "gone"]]
    table = read_table(write(tmp_path / "a.tsv", rows))
    assert [(row.index, row.cells["question"]) for row in table.rows] == [("x1", text), ("x2", '"')]
    assert table.dropped == 1 and table.columns == ("index", "image", "question")
    assert table.pictures(table.rows[0]) == table.pictures(table.rows[1]) == [base64.b64decode(encoded())]


def test_several_pictures_and_pictures_in_files(tmp_path):
    two = [encoded("red"), encoded("blue")]
    table = read_table(write(tmp_path / "a.tsv", [["index", "image", "question"], ["1", str(two), "q"]]))
    assert table.pictures(table.rows[0]) == [base64.b64decode(text) for text in two]
    (tmp_path / "images").mkdir()
    PIL.Image.new("RGB", (8, 8)).save(tmp_path / "images" / "p.png")
    header = ["index", "image_path", "question"]
    table = read_table(write(tmp_path / "b.tsv", [header, ["1", "p.png", "q"], ["2", "['p.png', 'no.png']", "q"]]))
    assert table.pictures(table.rows[0], [tmp_path / "images"]) == [tmp_path / "images" / "p.png"]
    with pytest.raises(InputError, match=r"row 2: the picture no\.png is not there"):
        table.pictures(table.rows[1], [tmp_path / "images"])


def test_a_name_of_64_characters_is_no_picture(tmp_path):
    name = "x" * 64
    table = read_table(write(tmp_path / "a.tsv", [HEADER, [name, encoded(), "q"], ["2", name, "q"]]))
    assert table.pictures(table.rows[1]) == [base64.b64decode(encoded())]


def test_options_are_read_as_pandas_reads_them(tmp_path):
    rows = [
        ["index", "image", "question", "A", "B", "C", "D", "E", "F"],
        ["007", encoded(), "q", "1", "1.50", "None", "x", "٣", "0" * 5000],
        ["8", "7", "q", "2", "", "nan", "None of these", "٠٤", "1.0"],
    ]
    table = read_table(write(tmp_path / "a.tsv", rows))
    assert [row.index for row in table.rows] == ["7", "8"]
    assert [row.options for row in table.rows] == [
        {"A": "1", "B": "1.5", "D": "x", "E": "٣", "F": "0.0"},  # Arabic digits are texts
        {"A": "2", "D": "None of these", "E": "٠٤", "F": "1.0"},
    ]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([["index", "question"], ["1", "q"]], "has no pictures"),
        ([["index", "image"], ["1", "x" * 80]], "has no column 'question'"),
        ([HEADER, ["1", "x" * 80, "q"], ["01", "1", "q"]], "has the index '1' 2 times"),
        ([HEADER, ["1", "2", "q"], ["2", "1", "q"]], "there is no picture in row '2' that it names"),
        ([HEADER, ["1", "", "q"]], "has no question with a picture"),
        ([HEADER, ["1", "x" * 80, "q", "more"]], "row 1 has 4 cells, but there are 3 columns"),
        ([[*HEADER, "image"]], "has the column 'image' twice"),
        ([], "has no column 'index'"),
    ],
)
def test_a_bad_table_is_one_sentence(tmp_path, rows, said):
    with pytest.raises(InputError, match=said) as caught:
        read_table(write(tmp_path / "a.tsv", rows))
    assert str(caught.value).startswith(str(tmp_path)) and "\n" not in str(caught.value)


def test_references_name_rows_as_their_file_does(tmp_path):
    """RefCOCO's rows are renamed by their splits, and an index of letters leaves 01 as it is."""
    columns = ["index", "image", "question", "split", "answer"]
    rows = [["7", encoded(), "q", "RefCOCO_val", "a"], ["8", "7", "q", "RefCOCO_val", "a"]]
    other = encoded(size=(30, 20))
    rows += [["7", other, "q", "RefCOCO_testA", "a"], ["9", "7", "q", "RefCOCO_testA", "a"]]
    file = open_suite(get_suite("RefCOCO"), write(tmp_path / "RefCOCO.tsv", [columns, *rows]))
    shown = {row.index: file.pictures(row) for row in file.table.rows}
    assert shown["RefCOCO_val_8"] == shown["RefCOCO_val_7"] != shown["RefCOCO_testA_9"] == shown["RefCOCO_testA_7"]
    table = read_table(write(tmp_path / "a.tsv", [HEADER, ["01", encoded(), "q"], ["x", "01", "q"]]))
    assert table.pictures(table.rows[1]) == table.pictures(table.rows[0])


def test_bad_bytes_are_one_sentence(tmp_path):
    path = tmp_path / "a.tsv"
    for content, said in (
        (b'index\timage\tquestion\n1\tx\t"open', "a quote that never closes"),
        (b"index\timage\tquestion\n1\tx\t\xff", "row 1 is not UTF-8"),
    ):
        path.write_bytes(content)
        with pytest.raises(InputError, match=said):
            read_table(path)
    table = read_table(write(path, [HEADER, ["1", "=" + "?" * 80 + "a", "q"]]))
    with pytest.raises(InputError, match="row 1: the picture is not base64"):
        table.pictures(table.rows[0])
    for path in (tmp_path / "none.tsv", tmp_path):
        with pytest.raises(InputError):
            read_table(path)


def test_a_quote_that_never_closes_is_not_read_to_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(tsv, "_LONGEST_LINE", 64)
    path = tmp_path / "a.tsv"
    path.write_text('index\timage\tquestion\n1\tx\t"open\n' + "1\tx\tq\n" * 20 + '2\tx\t"closed"\n')
    with pytest.raises(InputError, match="row 1 has a quote that never closes"):
        read_table(path)


def test_another_file_than_the_published_one(tmp_path):
    rows = [[*HEADER, "answer"], ["1", encoded(), "q", "a"]]
    write(tmp_path / "OCRBench.tsv", rows)
    suite = get_suite("OCRBench")
    assert open_suite(suite, tmp_path).is_published is False
    with pytest.raises(InputError, match="is not the published OCRBench: its md5 is"):
        open_suite(suite, tmp_path, strict=True)


_STREAM = """
import resource
import sys

from internvl_jax.evaluation import get_suite, open_suite
file = open_suite(get_suite("BLINK"), sys.argv[1])
assert [line["tiles"] for line in file.prompts("default")] == [[3]] * int(sys.argv[2])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.soak
def test_a_table_of_2_gb_takes_less_than_1_gb(tmp_path):
    """Forty pictures of 50 MB: its prompts and tiles, from the table's beginning to its end."""
    picture, count = encoded(kind="BMP", size=(5000, 2500)), 40
    with (tmp_path / "BLINK.tsv").open("w") as file:
        file.write("index\timage\tquestion\tA\tB\tanswer\n")
        for index in range(count):
            file.write(f"{index}\t{picture}\twhat is it\tred\tblue\tA\n")
    assert (tmp_path / "BLINK.tsv").stat().st_size > 2e9
    done = forks.python("-c", _STREAM, str(tmp_path / "BLINK.tsv"), str(count))
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) * 1024 < 1e9
