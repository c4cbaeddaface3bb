"""Queues against what is known of them: waits of one line, utilisation, batches; and that nothing overtakes."""

import dataclasses
import itertools
import statistics

import pytest

from internvl_jax.planning.queueing import Arrival, Curve, TextSteps, TowerSteps, encoded, link, poisson, served

COUNT = 40_000


def text(**changed):
    steps = {"rows": 1, "groups": 1, "chunk": 100, "piece": 4, "slots": 400, "late": 0.0, "begin": 1e-3, "token": 2e-3}
    return TextSteps(**(steps | {"first": Curve(((10, 2e-3), (100, 4e-3)))} | changed))


def fixed(rows, seconds, chips=1, most=1):
    """A tower that takes as long for any number of tiles."""
    return encoded(*rows, TowerSteps(chips, most, Curve(((1, seconds),))), servers=1)


@pytest.mark.parametrize("used", [0.3, 0.8])
def test_one_line_waits_as_long_as_theory_says(used):
    """A fixed time and arrivals by chance (M/D/1): the wait is used * time / (2 - 2 * used). A link, a vision server of
    one tile and a server of one row are such queues."""
    time = 4e-3 + 1e-3 + 3 * 2e-3  # a whole chunk, a first token, three more
    at = poisson(used / time, COUNT, seed=1)
    wait = used * time / 2 / (1 - used)
    sent = link(at, [time] * COUNT)
    assert statistics.mean(end - start - time for start, end in zip(at, sent, strict=True)) == pytest.approx(wait, 0.05)
    assert fixed((at, [1] * COUNT), time) == pytest.approx(sent)
    told = served([Arrival(start, 0, 100, 4) for start in at], text(), None)
    assert [one.last for one in told] == pytest.approx(sent)
    assert [one.last - one.first for one in told] == pytest.approx([3 * 2e-3] * COUNT)


def test_arrivals_by_chance():
    at = poisson(50.0, COUNT, seed=3)
    gaps = [after - before for before, after in itertools.pairwise(at)]
    assert statistics.mean(gaps) == pytest.approx(0.02, 0.02) and statistics.stdev(gaps) == pytest.approx(0.02, 0.02)
    assert at == poisson(50.0, COUNT, seed=3) != poisson(50.0, COUNT, seed=4)


def test_a_batch_takes_what_waits_and_no_more_than_it_holds():
    # Four wait at 0, of 3 tiles each: 8 go first, then 4; the third request's last tile is among these.
    assert fixed(([0.0] * 4, [3] * 4), 1.0, chips=2, most=8) == [1.0, 1.0, 2.0, 2.0]
    # One that comes while a batch is on its way waits for the next one.
    assert fixed(([0.0, 0.5, 2.5], [1, 1, 1]), 1.0, most=8) == [1.0, 2.0, 3.5]


def test_padding_of_a_batch():
    """Tiles are spread over chips: the fullest one decides."""
    tower = TowerSteps(4, 32, Curve(((1, 1.0), (8, 4.5))))
    assert [tower.time(tiles) for tiles in (1, 4, 5, 8, 32)] == [1.0, 1.0, 1.5, 1.5, 4.5]


def test_vision_servers_share_the_work():
    """A request goes where fewest tiles wait; n servers do n times as much."""
    tower = TowerSteps(1, 2, Curve(((1, 1.0), (2, 2.0))))
    ends = [max(encoded([0.0] * 120, [1] * 120, tower, servers)) for servers in (1, 2, 3)]
    assert ends == [120.0, 60.0, 40.0]
    assert encoded([0.0, 0.1, 0.2], [5, 1, 1], tower, 2) == pytest.approx([5.0, 1.1, 2.1])


def test_a_server_gives_what_its_steps_allow():
    """Requests that all wait. While prompts are left to read, a step reads one a group and writes a token of all rows:
    with rows enough as many answers end as prompts are read."""
    step = 4e-3 + 1e-3 + 2e-3
    for groups in (1, 2):
        told = served([Arrival(0.0, 0, 100, 5)] * 1000, text(rows=16, groups=groups), None)
        ends = sorted(one.last for one in told)
        assert 800 / (ends[900] - ends[100]) == pytest.approx(groups / step, 0.01)
    # Of longer answers, rows are what is short: 8 tokens of both rows, with a prompt read in two of these steps.
    told = served([Arrival(0.0, 0, 100, 9)] * 1000, text(rows=2), None)
    ends = sorted(one.last for one in told)
    assert 800 / (ends[900] - ends[100]) == pytest.approx(2 / (8 * 2e-3 + 2 * 5e-3), 0.02)


def test_long_prompts_are_read_in_parts():
    """Four parts, each later one dearer the farther it lies from its prompt's beginning."""
    steps = text(late=8e-3)
    (told,) = served([Arrival(1.0, 0, 350, 1)], steps, None)
    late = [8e-3 * (end - begin) / 100 * end / 400 for begin, end in ((100, 200), (200, 300), (300, 350))]
    read = 3 * 4e-3 + steps.first.at(50) + sum(late)
    assert told.first == told.last == pytest.approx(1.0 + read + 1e-3)


def test_a_tower_holds_up_those_that_write():
    """A coupled server's row waits while another request's tiles are encoded; a language server's doesn't."""
    asked = [Arrival(0.0, 0, 100, 50), Arrival(0.02, 3, 100, 1)]
    tower = TowerSteps(2, 8, Curve(((1, 0.1),)))
    alone, coupled = served(asked, text(rows=2), None), served(asked, text(rows=2), tower)
    # Two tiles at a time while somebody writes: two passes.
    assert coupled[0].last - alone[0].last == pytest.approx(2 * 0.1)
    assert coupled[1].first - alone[1].first >= 2 * 0.1


def test_patience_fills_the_towers_passes():
    """Where rows are short, newcomers come one by one: each with a pass of its own, or four to a pass."""
    asked = [Arrival(0.0, 1, 100, 5)] * 1000
    tower = TowerSteps(4, 32, Curve(((1, 0.05),)))
    spent = [
        served(asked, text(rows=8), changed)[-1].last
        for changed in (None, tower, dataclasses.replace(tower, patient=True))
    ]
    passes = [(seconds - spent[0]) / 0.05 for seconds in spent[1:]]
    assert passes[0] > 900 and passes[1] == pytest.approx(250, 0.05)


def test_a_tower_that_takes_no_time_is_none():
    asked = [Arrival(at, 1, 90, 6) for at in poisson(60.0, 2000, seed=5)]
    nothing = TowerSteps(64, 64, Curve(((1, 0.0),)))
    assert served(asked, text(rows=4), nothing) == served(asked, text(rows=4), None)


def test_nothing_overtakes_and_nothing_is_lost():
    at = poisson(40.0, 3000, seed=7)
    asked = [Arrival(start, 1 + n % 5, 40 + 37 * (n % 9), 1 + n % 11) for n, start in enumerate(at)]
    told = served(asked, text(rows=8, late=1e-3), TowerSteps(4, 32, Curve(((1, 5e-3), (4, 9e-3)))))
    firsts = [one.first for one in told]
    assert firsts == sorted(firsts)
    for one, end in zip(asked, told, strict=True):
        assert end.first > one.at and end.last >= end.first + (one.answer - 1) * 2e-3 - 1e-9
