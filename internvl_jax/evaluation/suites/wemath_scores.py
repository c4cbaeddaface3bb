"""We-Math: what a model knows, by questions of two and three steps and the steps asked alone.

Source of the rule: VLMEvalKit at e8e78f05, vlmeval/dataset/utils/wemath.py. Its second table, by nodes of a tree of
knowledge, is not made.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from internvl_jax.evaluation.intervals import Sums, headline_interval
from internvl_jax.evaluation.suites.judges import judged_option
from internvl_jax.evaluation.suites.options import infer_option
from internvl_jax.evaluation.suites.suite import Judge, Predicted, Rated, Suite

_PROBLEMS = 525  # of several steps, in the whole set: what every share is of
_LOST = {"InadequateGeneralization": 0.5, "InsufficientKnowledge": 1.0, "RoteMemorization": 1.0}  # points, of one each


def wemath(suite: Suite, answers: Sequence[Predicted], judge: Judge | None) -> Rated:
    """Shares of problems that are mastered, learned by rote, not generalised to and not known, and the score of them.

    A problem is mastered if it and its steps (strict: all of them, loose: one) are right; rote is a right problem whose
    steps are wrong (strict: one, loose: all). Without a judge the letter behind 'Answer' counts, as released.
    """
    rows, judged, problems = list[dict[str, Any]](), 0, dict[tuple[str, int], dict[str, bool]]()
    for answer in answers:
        said = _letter(answer.text)
        if judge is not None:
            said = infer_option(answer.text, answer.options)
            if said is None:
                judged += 1
                said = judged_option(judge, answer.cells["question"], answer.options, answer.text)
        hit = said == answer.cells["answer"]
        rows.append({"index": answer.index, "hit": int(hit), "extracted": said})
        steps, _, step = answer.cells["key"].partition("steps_")
        if steps in ("2", "3"):
            problem = answer.cells.get("ID") or answer.cells.get("id", "")
            problems.setdefault((problem, int(steps)), {})[step] = hit
    kinds = [_kinds(steps, hits) for (_, steps), hits in problems.items()]
    table, lost = _table(kinds), [("", (_LOST.get(strict, 0.0),)) for strict, _ in kinds]
    interval = headline_interval(lost, _score_of)
    return Rated([table], rows, float(table["Score (Strict)"].rstrip("%")), judged, interval)


def _score_of(sums: Sums) -> float:
    return 100 * (_PROBLEMS - sums[""][0]) / _PROBLEMS


def _letter(text: str) -> str | None:
    behind = re.sub(r"[><:.]", "", text.split("Answer")[-1].strip()).strip()
    return behind[0] if behind and behind[0] in "ABCDEFGH" else None


def _kinds(steps: int, hits: Mapping[str, bool]) -> tuple[str, str]:
    """What a problem shows, strictly and loosely; "" where rows are missing that would tell."""
    if not {"multi", "1"} <= hits.keys():
        return "", ""
    alone = [hits.get(str(step)) for step in range(1, steps + 1)]
    all_right, one_wrong = all(alone), any(hit is False for hit in alone)
    if not hits["multi"]:
        kind = "InadequateGeneralization" if all_right else "InsufficientKnowledge" if one_wrong else ""
        return kind, kind
    strict = "CompleteMastery" if all_right else "RoteMemorization" if one_wrong else ""
    all_wrong = all(hit is False for hit in alone)
    return strict, "CompleteMastery" if any(alone) else "RoteMemorization" if all_wrong else ""


def _table(kinds: Sequence[tuple[str, str]]) -> dict[str, str]:
    row = {}
    for place, name in enumerate(("Strict", "Loose")):
        count = lambda kind, place=place: sum(each[place] == kind for each in kinds)
        general, known = count("InadequateGeneralization"), count("InsufficientKnowledge")
        rote, mastered = count("RoteMemorization"), count("CompleteMastery")
        row[f"Score ({name})"] = f"{(_PROBLEMS - 0.5 * general - rote - known) / _PROBLEMS:.2%}"
        row[f"InsufficientKnowledge ({name})"] = f"{known / _PROBLEMS:.2%} ({known})"
        row[f"InadequateGeneralization ({name})"] = f"{general / _PROBLEMS:.2%} ({general})"
        row[f"CompleteMastery ({name})"] = f"{mastered / _PROBLEMS:.2%} ({mastered})"
        row[f"RoteMemorization ({name})"] = f"{rote / max(1, rote + mastered):.2%} ({rote})"
    return row
