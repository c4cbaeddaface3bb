"""What a model scores, as JSON and as one HTML page: the official tables, the paper's figures beside, wrong answers."""

import base64
import html
import io
import json
import math
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from internvl_jax.data import images
from internvl_jax.errors import InputError
from internvl_jax.evaluation.suites.published import published
from internvl_jax.evaluation.suites.suite import ScoreTable
from internvl_jax.evaluation.suites.suite_file import RELEASED_TILES, SuiteFile
from internvl_jax.evaluation.suites.suite_run import SuiteResult
from internvl_jax.evaluation.suites.tsv import TableRow, as_list
from internvl_jax.files import whole_file

_WRONG = 20  # answers a suite that are shown
_PICTURES = 4  # of a question that are shown
_THUMBNAIL = 240  # pixels of its longer side
_LONGEST = 1500  # characters of an answer that are shown
_STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;margin:1rem 0}td,th{border:1px solid #ccc;padding:.2rem .6rem;text-align:left}
.wrong{display:grid;grid-template-columns:15rem 1fr;gap:1rem;border-top:1px solid #ccc;padding:1rem 0}
pre{white-space:pre-wrap;margin:.2rem 0;background:#f6f6f6;padding:.4rem}"""


def summary(file: SuiteFile, result: SuiteResult, size: str | None) -> dict[str, Any]:
    """What the JSON report says of a suite.

    Args:
      size: of the model, as the paper calls it; None where it is no released one.
    """
    suite, (low, high) = result.suite, result.interval
    return plain(
        {
            "suite": suite.name,
            "score": result.rated.score,
            "headline": result.rated.headline,
            "judge": result.could_ask,
            "interval_95": [low, high],
            "questions": result.questions,
            "answered": result.answered,
            "judged": result.rated.judged,
            "truncated": result.truncated,
            "repeated": result.repeated,
            "unfinished_thinking": result.unfinished,
            "published_file": file.is_published,
            "paper": published(suite).get(size or ""),
            "paper_by_size": published(suite),
            "remarks": remarks(file, result),
        }
    )


def remarks(file: SuiteFile, result: SuiteResult) -> list[str]:
    """What must be known to read the score, a sentence each."""
    suite, said = result.suite, []
    if result.answered < result.questions:
        said.append(f"{result.questions - result.answered} of {result.questions} questions have no answer.")
    if suite.judge == "helps" and not result.could_ask:
        said.append("Scored by rule alone: the published score had a judge where the rule can't tell.")
    if file.is_published is False:
        said.append("The file is not the published one.")
    if file.table.dropped:
        said.append(f"{file.table.dropped} rows have no picture and are left out, as in the official code.")
    return said + ([f"Not complete: {suite.missing}."] if suite.missing else [])


def plain(value: Any) -> Any:
    """The same as JSON can say it: null for NaN."""
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_lines(path: str | os.PathLike, lines: Iterable[Mapping[str, Any]]) -> None:
    """Writes a JSON object a line; the file appears when it is whole."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(plain(dict(line)), ensure_ascii=False) + "\n" for line in lines)


def write_report(folder: pathlib.Path, found: Sequence[tuple[SuiteFile, SuiteResult]], size: str | None) -> None:
    """Writes report.json and report.html into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    summaries = [summary(file, result, size) for file, result in found]
    parts = ["<h1>Evaluation</h1>", _table([_line(each) for each in summaries])]
    for (file, result), each in zip(found, summaries, strict=True):
        parts += _part(file, result, each)
    page = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Evaluation</title><style>{_STYLE}</style>'
    )
    page += "</head><body>\n" + "\n".join(parts) + "\n</body></html>\n"
    for name, text in (
        ("report.json", json.dumps(summaries, indent=2, ensure_ascii=False) + "\n"),
        ("report.html", page),
    ):
        with whole_file(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")


def _line(each: Mapping[str, Any]) -> dict[str, Any]:
    low, high = each["interval_95"]
    return {
        "suite": each["suite"],
        "score": _shown(each["headline"]),
        "95 % interval": f"{low:.4g} .. {high:.4g}",
        "paper": _shown(each["paper"]),
        "answered": f"{each['answered']} of {each['questions']}",
        "by a judge": each["judged"],
        "cut off": "not known" if each["truncated"] is None else f"{each['truncated']:.1%}",
        "in a loop": f"{each['repeated']:.1%}",
        "unfinished thinking": f"{each['unfinished_thinking']:.1%}",
    }


def _part(file: SuiteFile, result: SuiteResult, each: Mapping[str, Any]) -> list[str]:
    """The part of the page about one suite."""
    parts = [f"<h2>{html.escape(each['suite'])}</h2>", *(f"<p>{html.escape(text)}</p>" for text in each["remarks"])]
    parts.append(_table(_rows(result.rated.score)))
    if each["paper_by_size"]:
        parts.append("<p>In the paper, by size:</p>" + _table([each["paper_by_size"]]))
    wrong = [row for row in result.rated.rows if not row.get("hit", row.get("score", 0) >= 0.5)]
    parts.append(f"<h3>Wrong answers: {len(wrong)}{f', {_WRONG} shown' if len(wrong) > _WRONG else ''}</h3>")
    return parts + [_wrong(file, result, row) for row in wrong[:: max(1, len(wrong) // _WRONG)][:_WRONG]]


def _rows(score: ScoreTable) -> list[dict[str, Any]]:
    """A table as rows; what is nested goes by its dotted names."""
    return score if isinstance(score, list) else [{"": name, "score": value} for name, value in _flat(score, "")]


def _flat(score: Mapping[str, Any], before: str) -> Iterator[tuple[str, Any]]:
    for name, value in score.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{name} / ")
        else:
            yield f"{before}{name}", value


def _wrong(file: SuiteFile, result: SuiteResult, row: Mapping[str, Any]) -> str:
    at = next(each for each in file.table.rows if each.index == row["index"])
    cells = at.cells
    options = [f"{letter}. {text}" for letter, text in at.options.items()] or as_list(cells.get("candidates", ""))
    answer = result.predictions[at.index]
    seen = {name: value for name, value in row.items() if name not in ("index", "hit")}
    texts = [
        ("question", cells["question"]),
        ("options", "\n".join(options)),
        ("answer", cells.get("answer") or cells.get("bbox", "")),
        ("prediction", answer.prediction),
        ("response", answer.response),
        ("seen", json.dumps(plain(seen), ensure_ascii=False) if seen else ""),
    ]
    shown = "".join(f"<b>{name}</b><pre>{html.escape(text[:_LONGEST])}</pre>" for name, text in texts if text)
    return f'<div class="wrong"><div>{html.escape(at.index)}<br>{_thumbnails(file, at)}</div><div>{shown}</div></div>'


def _thumbnails(file: SuiteFile, row: TableRow) -> str:
    """The first four pictures of a row, or four frames of its video; what can't be read is said to be so."""
    try:
        pictures = file.pictures(row)
    except InputError as error:
        return html.escape(str(error))
    every = 1 if file.suite.has_pictures else max(1, len(pictures) // _PICTURES)
    parts = []
    for picture in pictures[::every][:_PICTURES]:
        try:
            image = images.load_image(picture, RELEASED_TILES)
        except InputError as error:
            parts.append(html.escape(str(error)))
            continue
        image.thumbnail((_THUMBNAIL, _THUMBNAIL))
        buffer = io.BytesIO()
        image.save(buffer, format="JPEG", quality=80)
        parts.append(f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}">')
    return "".join(parts)


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(_shown(row.get(name)))}</td>" for name in columns) + "</tr>" for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return "-" if math.isnan(value) else f"{value:.4g}"
    return "-" if value is None else str(value)
