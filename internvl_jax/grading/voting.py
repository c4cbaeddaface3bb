"""Self-consistency: of several responses to a question the one whose answer most of them give (arXiv 2203.11171)."""

from collections.abc import Sequence

from internvl_jax.grading import answers
from internvl_jax.grading.pool import Graders


def votes(responses: Sequence[str], graders: Graders) -> list[int]:
    """How many of the responses give the answer that each of them gives, itself included; 0 for one without an answer
    (its thinking doesn't end).

    Answers in the same words but for case agree; whether others do is the graders' to say, of each response against
    what an earlier one states.
    """
    stated = [answers.final_answer(response) for response in responses]
    words = [None if text is None else text.strip().lower() for text in stated]
    first = {text: number for number, text in reversed(list(enumerate(words))) if text is not None}
    distinct = sorted(first.values())
    pairs = [(later, earlier) for place, later in enumerate(distinct) for earlier in distinct[:place]]
    graded = graders.grade([responses[later] for later, _ in pairs], [str(stated[earlier]) for _, earlier in pairs])
    agree = {pair for pair, score in zip(pairs, graded, strict=True) if score.error is None and score.accuracy == 1}
    party: dict[int, int] = {}  # of an answer in other words the first that it agrees with, if not itself
    for later in distinct:
        heads = (other for other in distinct if party.get(other) == other and (later, other) in agree)
        party[later] = next(heads, later)
    parties = [None if text is None else party[first[text]] for text in words]
    return [0 if each is None else parties.count(each) for each in parties]
