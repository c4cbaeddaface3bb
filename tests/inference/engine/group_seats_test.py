"""Who has which row: every answer is written once, beside its prompt, and few rows stand idle."""

import numpy as np
import pytest

from configs.models import sizes
from internvl_jax.inference import GroupSize, Ladders, group_memory
from internvl_jax.inference.engine.group_seats import GroupSeats, Layout
from internvl_jax.inference.engine.memory import FIRST_SLOTS

SIZES = (2, 4, 8, 16, 32)


def run(count, group, together, shards=1, slots=(16, 64), moves=None):
    """Answers of random lengths, some of one token; returns groups, tokens of all rows, and tokens that are wanted.

    Args:
      moves: takes the layouts before and after each move.
    """
    lengths = np.random.default_rng(0).geometric(0.05, count * group).clip(1, 200)
    groups, written = GroupSeats(count, group, together, slots, SIZES, shards), np.zeros(count * group, int)
    steps = read = 0
    where = groups.answer_B.copy()  # what the device would hold in its rows

    def told(answer):
        if written[answer] == lengths[answer]:
            groups.end(answer)
        elif written[answer] == 1:
            groups.queue(answer)

    def seat():
        rows = groups.seat()
        where[rows] = groups.answer_B[rows]

    for _ in range(10_000):
        seat()
        while order := groups.take((shards, 4 * shards), 8):
            each = len(order) // shards
            for r, q in enumerate(order):
                if q is None:
                    continue
                assert q // (groups.layout.prompts // shards) == r // each
                read += 1
                where[groups.rows(q)] = groups.answer_B[groups.rows(q)]
                own = int(groups.prompt_Q[q]) * group + np.arange(group)
                written[own] += 1
                for answer in own:
                    told(answer)
        while (before := groups.layout, move := groups.move())[1] is not None:
            if moves is not None:
                moves.append((before, groups.layout))
            here = where[move.rows_B]
            where = np.where(move.real_B, here, -1)
            seat()
        live = groups.writing
        if not len(live) and not groups.waits:
            break
        answers = groups.answer_B[live]
        assert len(set(answers)) == len(answers)
        np.testing.assert_array_equal(where[live], answers)
        np.testing.assert_array_equal(np.repeat(groups.prompt_Q, groups.layout.width)[live], answers // group)
        few = groups.few()
        assert few < max(len(live), 1)
        going = list(answers)
        while len(going) > few:
            steps += groups.layout.rows
            written[going] += 1
            going = [answer for answer in going if written[answer] < lengths[answer]]
        for answer in answers:
            told(answer)
    assert read == count
    np.testing.assert_array_equal(written, lengths)
    return groups, steps, int(lengths.sum()) - len(lengths)


@pytest.mark.parametrize(
    ("count", "group", "together", "shards"),
    [(1, 4, 1, 1), (5, 4, 8, 1), (9, 4, 2, 1), (9, 1, 4, 1), (23, 16, 4, 1), (11, 5, 4, 2), (3, 16, 8, 2)],
)
def test_every_answer_once(count, group, together, shards):
    groups, _, _ = run(count, group, together, shards)
    assert groups.layout.rows <= max(SIZES) * group


def test_few_rows_stand_idle_while_prompts_wait():
    """Most of what rows compute is wanted, though the longest of 16 answers has three times the mean."""
    _, steps, wanted = run(60, 16, 8)
    assert wanted > 0.6 * steps


def test_more_prompts_in_the_same_memory():
    prompt, answer = 100, 400
    for group, together in ((16, 8), (4, 5), (1, 3)):
        layout = GroupSeats(1000, group, together, (prompt, answer), SIZES, 1).layout
        room = together * (prompt + group * answer)
        assert (
            layout.prompts * prompt + layout.rows * answer
            <= room
            < 1.5 * layout.prompts * (prompt + layout.width * answer)
        )


@pytest.mark.parametrize("prompt", [64, 8192])
@pytest.mark.parametrize("answer", [FIRST_SLOTS, 4 * FIRST_SLOTS])
@pytest.mark.parametrize("count", [4, 40])
def test_moves_need_no_more_memory_than_is_counted(prompt, answer, count):
    """What lies there before a move and after it, with all the slots that answers may have."""
    group, together, moves, text = 16, 4, [], sizes.TINY.text
    run(count, group, together, slots=(prompt, FIRST_SLOTS), moves=moves)
    slot = 2 * text.layers * text.kv_heads * text.head_width * 4
    ladders = Ladders(rows=SIZES, prompts=(prompt,), slots=(answer,))
    counted = group_memory(text, np.float32, GroupSize(together, group, prompt, answer), ladders, (1, 1)).total / slot
    held = lambda layout, answer: layout.prompts * prompt + layout.rows * answer
    assert moves and max(held(before, answer) + held(after, answer) for before, after in moves) <= counted
    first = moves[0][0]  # while prompts wait, answers get more slots too
    assert held(first, answer) + (held(first, answer // 2) if answer > FIRST_SLOTS else 0) <= counted


def test_a_smaller_layout_has_half_the_rows():
    layouts = [Layout(3, 5)]
    while (smaller := layouts[-1].smaller(SIZES)) is not None:
        layouts.append(smaller)
    assert layouts == [(3, 5), (3, 3), (3, 2), (3, 1), (2, 1)]
