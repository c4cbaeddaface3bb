"""Short answers: VQA, OCR, charts, documents, relations. Source of the rules: VLMEvalKit at e8e78f05 (image_vqa.py,
vqa_eval.py, ocrbench.py, crpe.py, erqa.py, vcr.py).
"""

import difflib
import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any

from internvl_jax.evaluation.intervals import headline_interval, mean_interval
from internvl_jax.evaluation.suites import text_matching
from internvl_jax.evaluation.suites.suite import Judge, Predicted, Rated, Suite
from internvl_jax.evaluation.suites.text_matching import mean
from internvl_jax.evaluation.suites.tsv import as_list

_TEXT_RECOGNITION = (
    *("Regular Text Recognition", "Irregular Text Recognition", "Artistic Text Recognition"),
    *("Handwriting Recognition", "Digit String Recognition", "Non-Semantic Text Recognition"),
)
_OCRBENCH = (
    *("Scene Text-centric VQA", "Doc-oriented VQA", "Key Information Extraction"),
    "Handwritten Mathematical Expression Recognition",
)
_OCRBENCH_NORM = 10  # the whole set has 1,000 questions
_CRPE = ("exist", "subject", "predicate", "object")
_ROTATIONS = 4
_TOKEN = re.compile(r"\w+(?:'\w+)?|[^\w\s]")
_REFUSALS = ("I can't", "I cannot", "无法", "抱歉")


def vqa(suite: Suite, answers: Sequence[Predicted], judge: Judge | None) -> Rated:
    """TextVQA's agreement with ten annotators."""
    return _averaged(answers, text_matching.vqa_score)


def anls(suite: Suite, answers: Sequence[Predicted], judge: Judge | None) -> Rated:
    """Similarity to the nearest of the answers, of DocVQA and InfoVQA."""
    return _averaged(answers, text_matching.anls)


def relaxed(suite: Suite, answers: Sequence[Predicted], judge: Judge | None) -> Rated:
    """ChartQA: numbers within 5 %."""
    best = lambda text, true: float(max(text_matching.relaxed(text.strip(), each) for each in true))
    return _averaged(answers, best)


def exact(suite: Suite, answers: Sequence[Predicted], judge: Judge | None) -> Rated:
    """OCRVQA: one of the answers; GQA: the share of the answers that it is."""
    gather = mean if "GQA" in suite.name else max
    return _averaged(answers, lambda text, true: float(gather([text_matching.same_text(text, each) for each in true])))


def ocrbench(suite: Suite, answers: Sequence[Predicted], judge: Judge | None) -> Rated:
    """How many answers have one of the true ones in them."""
    rows, counts = list[dict[str, Any]](), dict.fromkeys((*_TEXT_RECOGNITION, *_OCRBENCH), 0)
    for answer in answers:
        category = answer.cells["category"]
        hit = any(text_matching.contains(answer.text, true, category) for true in as_list(answer.cells["answer"]))
        counts[category] = counts.get(category, 0) + hit
        rows.append({"index": answer.index, "hit": int(hit)})
    score: dict[str, Any] = {"Text Recognition": sum(counts[name] for name in _TEXT_RECOGNITION)}
    score |= {name: counts[name] for name in _OCRBENCH}
    total = sum(score.values())
    interval = mean_interval((row["hit"] for row in rows), len(rows))
    score |= {"Final Score": total, "Final Score Norm": total / _OCRBENCH_NORM}
    return Rated(score, rows, total, interval=interval)


def mtvqa(suite: Suite, answers: Sequence[Predicted], judge: Judge | None) -> Rated:
    """Percent of answers that have the true one in them, by language; 'Average' is over all questions."""
    rows: list[dict[str, Any]] = [
        {"index": answer.index, "hit": int(text_matching.contains_undotted(answer.text, answer.cells["answer"]))}
        for answer in answers
    ]
    found = dict[str, list[int]]()
    for answer, row in zip(answers, rows, strict=True):
        for name in (answer.cells["category"], "Average"):
            found.setdefault(name, []).append(row["hit"])
    score = {name: 100 * mean(hits) for name, hits in found.items()}
    return Rated(score, rows, score["Average"])


def crpe(suite: Suite, answers: Sequence[Predicted], judge: Judge | None) -> Rated:
    """Four rows of the table that follow one another are rotations of one question, which is right if all are that
    have an answer.
    """
    rows, found = list[dict[str, Any]](), {name: list[int]() for name in (*_CRPE, "total")}
    for _, own in itertools.groupby(answers, lambda answer: answer.place // _ROTATIONS):
        group = list(own)
        hits = [text_matching.names_option(answer.text, answer.cells["answer"]) for answer in group]
        for name in (group[-1].cells["category"] if all(hits) else _decided(group, hits), "total"):
            found.setdefault(name, []).append(int(all(hits)))
        rows += [{"index": each.index, "hit": int(hit)} for each, hit in zip(group, hits, strict=True)]
    score = {name: mean(hits) if hits else None for name, hits in found.items()}
    return Rated(score, rows, 100 * mean(found["total"]), interval=mean_interval(found["total"]))


def erqa(suite: Suite, answers: Sequence[Predicted], judge: Judge | None) -> Rated:
    """Equal to the answer but for case and space: 'A.' is wrong."""
    rows: list[dict[str, Any]] = [
        {"index": answer.index, "hit": int(text_matching.same_text(answer.text, answer.cells["answer"]))}
        for answer in answers
    ]
    kinds = [answer.cells.get("category", "") for answer in answers]
    overall = 100 * mean([row["hit"] for row in rows])
    table = [{"Category": "Overall", "Accuracy (%)": overall, "Samples": len(rows)}]
    for name in sorted(set(kinds) - {""}):
        hits = [row["hit"] for row, kind in zip(rows, kinds, strict=True) if kind == name]
        table.append({"Category": name, "Accuracy (%)": 100 * mean(hits), "Samples": len(hits)})
    return Rated(table, rows, overall)


def vcr(suite: Suite, answers: Sequence[Predicted], judge: Judge | None) -> Rated:
    """Covered texts: the run of words in the answer that is most like each of them, equal or by Jaccard's measure."""
    chinese, rows, exacts, jaccards = "_ZH_" in suite.name, list[dict[str, Any]](), list[float](), list[float]()
    for answer in answers:
        said = answer.text.rpartition("Assistant: ")[2]
        refused = any(word in said for word in _REFUSALS) or "sorry" in said.lower()
        pairs = [(0.0, 0.0) if refused else _restored(said, true, chinese) for true in as_list(answer.cells["answer"])]
        exacts += [pair[0] for pair in pairs]
        jaccards += [pair[1] for pair in pairs]
        rows.append({"index": answer.index, "score": mean([pair[0] for pair in pairs]), "pairs": pairs})
    counted = [("", (sum(pair[0] for pair in row["pairs"]), len(row["pairs"]))) for row in rows]
    interval = headline_interval(counted, lambda sums: 100 * sums[""][0] / max(1, sums[""][1]))
    return Rated({"Exact_Match": mean(exacts), "Jaccard": mean(jaccards)}, rows, 100 * mean(exacts), interval=interval)


def _averaged(answers: Sequence[Predicted], measure: Callable[[str, Sequence[str]], float]) -> Rated:
    """Percent over all questions, and by split, or by category where there is no split."""
    rows: list[dict[str, Any]] = [
        {"index": answer.index, "score": measure(answer.text, as_list(answer.cells["answer"]) or [""])}
        for answer in answers
    ]
    score = {"Overall": 100 * mean([row["score"] for row in rows])}
    column = "split" if answers and "split" in answers[0].cells else "category"
    names = [answer.cells.get(column, "") for answer in answers]
    for name in sorted(set(names) - {""}):
        score[name] = 100 * mean([row["score"] for row, own in zip(rows, names, strict=True) if own == name])
    return Rated([score], rows, score["Overall"])


def _decided(group: Sequence[Predicted], hits: Sequence[bool]) -> str:
    """The category of the rotation that the official code stops at, the first that is wrong."""
    return group[hits.index(False)].cells["category"]


def _restored(said: str, true: str, chinese: bool) -> tuple[float, float]:
    """(equal, Jaccard's measure) of the best run of as many words as the covered text has."""
    split = list if chinese else _TOKEN.findall
    hay, needle = split(said), split(true)
    runs = [hay[at : at + len(needle)] for at in range(len(hay) - len(needle) + 1)]
    likeness = lambda run: difflib.SequenceMatcher(None, ("" if chinese else " ").join(run), true).ratio()
    best = max((run for run in runs if set(run) & set(needle)), key=likeness, default=[])
    shared, every = set(best) & set(needle), set(best) | set(needle)
    return float(best == needle and bool(best)), len(shared) / len(every) if best else 0.0
