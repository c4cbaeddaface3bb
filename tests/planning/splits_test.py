"""Pods shared between vision and language servers, with toy step times."""

import dataclasses
import functools
import json
import statistics

import pytest

from configs.experiments import sft
from internvl_jax.errors import InputError
from internvl_jax.planning import Traffic, plan_splits, split, splits, splits_table
from internvl_jax.planning.chips import Topology
from internvl_jax.planning.queueing import Curve, TextSteps, TowerSteps
from internvl_jax.planning.splits import Deployment, asking_of, parts, server_slices, tiles_of

POD = Topology.parse("v6e:4x4")
TRAFFIC = Traffic(requests=400)
MODEL, FLASH = (sft.get_config(size).model for size in ("38b", "38b-flash"))


def server(chips, slots=4096):
    slower = 8 / chips
    return {
        "mesh": f"data=1,tensor={chips}",
        "groups": 1,
        "rows": 32,
        "chunk": 512,
        "slots": slots,
        "bytes": 25e9,
        "tower": 11e9 / chips,
        "cache": 34e9 / chips,
        "limit": 33e9,
        "reason": None,
        "begin": 1e-3,
        "first": {"64": 6e-3 * slower, "512": 9e-3 * slower},
        "late": 11e-3 * slower,
        "token": {"512": 7e-3 * slower, str(slots): 9e-3 * slower},
    }


def times(**changed):
    """Of a language model of 4 or 8 chips."""
    tower = {"bytes": 14e9, "limit": 33e9, "reason": None, "tower": 11e9}
    return {
        "vision": {"v6e:2x2": tower | {"encode": {"1": 17e-3, "2": 33e-3, "4": 65e-3, "8": 130e-3}}},
        "server": {"v6e:2x2": server(4) | changed, "v6e:2x4": server(8) | changed},
        "coupled": {name: tower | {"encode": {"1": 55e-3, "4": 85e-3}} for name in ("v6e:2x2", "v6e:2x4")},
    }


@functools.cache
def planned(flash=False, gbits=10.0):
    traffic = dataclasses.replace(TRAFFIC, gbits=gbits)
    return split(FLASH if flash else MODEL, POD, times(), traffic)


def test_every_split_uses_the_whole_pod():
    found = planned()
    assert json.loads(json.dumps(found)) == json.loads(json.dumps(found | {"sides": [448, 896, 1344]}))
    for work in found["workloads"]:
        ways = {(row["vision_chips"], row["server"], row["servers"]) for row in work["splits"]}
        assert ways == {(12, "v6e:2x2", 1), (8, "v6e:2x2", 2), (4, "v6e:2x2", 3), (8, "v6e:2x4", 1)}
        assert all(row["vision_chips"] + row["language_chips"] == POD.chips for row in work["splits"])
        assert work["coupled"]["language_chips"] == POD.chips and work["coupled"]["vision_chips"] == 0
        assert [work["tiles"], work["prompt"]] in ([1, 320], [5, 1344], [10, 2624])


@pytest.mark.parametrize("flash", [False, True])
def test_a_deployment_gives_what_its_slowest_stage_gives(flash):
    """And nothing on these chips more than the work that there is, done without waste."""
    for work in planned(flash)["workloads"]:
        for row in work["splits"]:
            assert row["requests_s"] == pytest.approx(min(row["limits"].values()), 0.05)
            assert row["limits"][row["bound_by"]] == min(row["limits"].values())
            assert row["requests_s"] <= 1.02 * work["no_waste_s"]
        assert work["most_requests"]["requests_s"] == max(row["requests_s"] for row in work["splits"])
        waits = [row["ttft_p90_s"] for row in work["splits"] if row["ttft_p90_s"] is not None]
        assert work["soonest"]["ttft_p90_s"] == min(waits)
        # Where a split has more vision chips than in balance, the language servers hold it.
        for row in work["splits"]:
            if row["server"] == "v6e:2x2":
                many = row["vision_chips"] / row["language_chips"] > work["balance"]
                assert row["bound_by"] == ("language" if many else "vision")
        assert work["coupled"]["requests_s"] <= 1.02 * work["no_waste_s"]
        assert work["rate"] == pytest.approx(0.7 * work["coupled"]["requests_s"])


def test_a_slow_network_holds_everything():
    for work in planned(gbits=0.5)["workloads"]:
        bytes_down = 2 * MODEL.text.width * (work["prompt"] - TRAFFIC.text)
        for row in work["splits"]:
            assert row["bound_by"] == "network"
            assert row["requests_s"] == pytest.approx(row["servers"] * 0.5e9 / 8 / bytes_down, 0.02)


def test_too_many_requests_have_no_time_to_a_first_token():
    for work in planned()["workloads"]:
        for row in work["splits"]:
            assert (row["ttft_mean_s"] is None) == (row["requests_s"] <= work["rate"])


def test_a_first_token_when_nobody_else_asks():
    """The sum of all ways and steps."""
    text = TextSteps(4, 1, 512, 16, 4096, Curve(((64, 6e-3), (512, 9e-3))), 0.0, 1e-3, 7e-3)
    tower = TowerSteps(4, 32, Curve(((1, 17e-3), (8, 130e-3))))
    one = Deployment("v6e:2x4", 1, text, tower, 2)
    (asked, *_) = asking_of(MODEL, 896, TRAFFIC, 1)
    seconds = (3 * 448 * 448 * 5 + 2 * MODEL.text.width * 256 * 5) * 8 / 10e9  # pixels there, features back
    seconds += tower.seconds.at(2) + 2 * 9e-3 + text.first.at(1344 - 1024) + 1e-3
    assert one.first_tokens(dataclasses.replace(TRAFFIC, requests=100), [asked] * 100, 1e-3) == pytest.approx(
        (seconds, seconds)
    )


def test_compressed_tiles_are_fewer_tokens_and_bytes():
    side = 1344
    assert asking_of(FLASH, side, dataclasses.replace(TRAFFIC, share=0.0), 2) == asking_of(MODEL, side, TRAFFIC, 2)
    for one in asking_of(FLASH, side, dataclasses.replace(TRAFFIC, share=1.0), 1):
        assert (one.prompt, one.down) == (64 + 640, 2 * FLASH.text.width * 640)
        assert (one.tiles, one.up) == (10, 10 * 448 * 448 * 3)  # the tower sees all of them
    half = statistics.mean(one.prompt - 64 for one in asking_of(FLASH, side, TRAFFIC, 1))
    assert half == pytest.approx(1280, 0.02)
    for plain, fewer in zip(planned()["workloads"], planned(flash=True)["workloads"], strict=True):
        assert fewer["most_requests"]["requests_s"] > plain["most_requests"]["requests_s"]


def test_tiles_of_the_papers_pictures():
    assert [tiles_of(side, MODEL) for side in (448, 896, 1344)] == [1, 5, 10]


def test_a_tower_may_be_what_does_not_fit():
    """A server of four chips has no room for it: only without a tower, and not with whole ones."""
    tight = times()
    tight["server"]["v6e:2x2"]["bytes"] = 35e9  # 2.75 of it the tower's
    tight["server"]["v6e:2x4"]["bytes"] = 15e9
    found = split(MODEL, POD, tight, TRAFFIC)["workloads"][0]
    assert found["coupled"]["server"] == found["coupled_with_whole_towers"]["server"] == "v6e:2x4"
    assert {row["server"] for row in found["splits"]} == {"v6e:2x2", "v6e:2x4"}
    assert {row["coupled_on_language_chips_s"] is None for row in found["splits"]} == {True, False}
    tight["vision"]["v6e:2x2"]["reason"] = "out of memory"
    with pytest.raises(InputError, match="has no room for a coupled server, or for a vision server beside a language"):
        split(MODEL, POD, tight, TRAFFIC)


def test_one_plan_rests_on_what_it_compiled(monkeypatch):
    toys, asked = times(), []
    for kind in toys:
        name = f"{kind}_times"
        toy = lambda *where, kind=kind: asked.append((kind, str(where[1]))) or toys[kind][str(where[1])]
        monkeypatch.setattr(splits, name, toy)
    found = plan_splits(sft.get_config("38b"), str(POD), splits_table.SIZE, TRAFFIC)
    servers = [(kind, where) for where in ("v6e:2x2", "v6e:2x4") for kind in ("server", "coupled")]
    assert asked == [("vision", "v6e:2x2"), *servers]
    assert found == planned() | {"times": toys}


def test_what_can_not_be_planned():
    with pytest.raises(InputError, match="no step times are known of cpu:8"):
        plan_splits(sft.get_config("tiny"), "cpu:8", splits_table.SIZE, TRAFFIC)
    with pytest.raises(InputError, match="need rows of 384 slots, and were compiled for 256"):
        split(MODEL, POD, times(slots=256), TRAFFIC)
    for wrong in ({"share": 1.5}, {"gbits": 0.0}, {"answer": 0}, {"sides": ()}, {"requests": 10}):
        with pytest.raises(InputError):
            Traffic(**wrong)


def test_servers_whose_chips_share_all_rows():
    config = sft.get_config("38b")
    assert list(map(str, server_slices(config, Topology.parse("v6e:8x8"), splits_table.SIZE))) == ["v6e:2x2", "v6e:2x4"]
    config = sft.get_config("241b-a28b")
    slices = server_slices(config, Topology.parse("v5p:2x4x4"), splits_table.SIZE)
    assert list(map(str, slices)) == ["v5p:2x2x2", "v5p:2x2x4", "v5p:2x4x4"]


def test_the_papers_speed_ups():
    """As table 18 prints them beside its requests a second."""
    printed = {
        "38b": {448: (1.19, 1.50), 896: (1.87, 4.05), 1344: (1.97, 3.47)},
        "241b-a28b": {448: (1.24, 1.85), 896: (1.86, 3.47), 1344: (2.01, 3.12)},
    }
    for name, sides in printed.items():
        for side, ratios in sides.items():
            base, *others = splits_table.TABLE_18[name][side]
            assert [other / base for other in others] == pytest.approx(ratios, abs=6e-3)


def test_the_page_goes_on_where_it_stopped(tmp_path, monkeypatch):
    made = []

    def toy(config, pod, size):
        for kind, where, _ in parts(config, pod, size):
            yield kind, where, functools.partial(make, kind, where)

    def make(kind, where):
        made.append((kind, where))
        return times()[kind]["v6e:2x2"] | {"topology": where}

    monkeypatch.setattr(splits_table, "parts", toy)
    monkeypatch.setattr(splits_table, "PODS", {"38b": ("v6e:4x4",)})
    monkeypatch.setattr(splits_table, "NETWORKS", (10.0,))
    monkeypatch.setattr(splits_table, "Traffic", functools.partial(Traffic, requests=200))
    both = {"38b": (sft.get_config("38b"), sft.get_config("38b-flash"))}
    page = tmp_path / "DVD_PLANS.md"
    for _ in range(2):
        summary = splits_table.write(str(page), both)
    assert len(made) == summary["step_times"] == 8 and summary["plans"] == 2
    rows = [line for line in page.read_text().splitlines() if line.startswith(("| 448", "| 896", "| 1344"))]
    assert [row.split(" | ")[1] for row in rows] == ["no", "yes"] * 6
    assert all("ms" in row for row in rows[6:]) and not any("ms" in row for row in rows[:6])
    assert "| 1.19x |" in rows[0] and "| 4.05x |" in rows[3] and "| 3.47x |" in rows[5]
