"""Time is counted over runs, and a part that has ended takes none."""

import json
import time

import pytest

from cascade import progress


def test_files_appear_whole(tmp_path):
    progress.write_whole(tmp_path / "a" / "b.json", "1")
    progress.write_whole(tmp_path / "a" / "b.json", "2")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b.json"]
    assert (tmp_path / "a" / "b.json").read_text() == "2"


def test_time_adds_up_until_a_part_ends(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])

    def work(seconds, fails=False):
        with progress.clock(tmp_path, "cpt"):
            now[0] += seconds
            if fails:
                raise RuntimeError

    with pytest.raises(RuntimeError):
        work(5, fails=True)
    assert progress.seconds(tmp_path) == {"cpt": 5}
    work(7)
    work(11)
    assert progress.seconds(tmp_path) == {"cpt": 12}


def test_a_kill_forgets_little(tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "BEAT", 0.01)
    path = tmp_path / "seconds" / "sft.json"
    with progress.clock(tmp_path, "sft"):
        deadline = time.monotonic() + 30
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert json.loads(path.read_text())["ended"] is False
    assert json.loads(path.read_text())["ended"] is True
