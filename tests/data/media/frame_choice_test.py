"""Frames are those that the release, VLMEvalKit and transformers choose: 1,862 recorded cases."""

import collections
import json
import random

import numpy as np
import pytest

from internvl_jax.data.media import frame_choice
from internvl_jax.errors import InputError


@pytest.fixture(scope="module")
def recorded(request):
    return json.loads((request.path.parents[2] / "golden/video/indices.json").read_text())


def test_the_guides_frames(recorded):
    for case in recorded["get_index"]:
        wanted = case["frames"], case["fps"], case["num_segments"], case["bound"], case["first_idx"]
        assert frame_choice.guide_frames(*wanted) == case["indices"], case
    assert len(recorded["get_index"]) == 808


def test_the_frames_of_training(recorded):
    kinds = collections.Counter()
    for case in recorded["train"]:
        kinds[case["sample"][:3]] += 1
        if case["sample"] == "middle":
            assert frame_choice.middle_frames(case["frames"], case["num_frames"]) == case["indices"], case
        elif case["sample"] == "rand":
            found = frame_choice.intervals(case["frames"], case["num_frames"])
            assert [[part.start, part.stop] for part in found] == case["intervals"], case
        else:
            wanted = case["frames"], case["input_fps"], float(case["sample"][3:]), case.get("max_num_frames")
            assert frame_choice.stepped_frames(*wanted) == case["indices"], case
    assert kinds == {"mid": 96, "ran": 96, "fps": 240}


def test_drawn_frames(recorded):
    """As Python draws them; of 9 frames NumPy's permutation left out the first, of which no seed was noted."""
    drawn = 0
    for case in recorded["train_random"]:
        frames, count = case["frames"], case["num_frames"]
        permuted = any(len(part) == 1 for part in frame_choice.intervals(frames, count)) and count < frames
        drawn += not permuted
        found = frame_choice.interval_frames(frames, count, random.Random(case["seed"]).choice, backwards)
        assert found == case["indices"], case
    assert (drawn, len(recorded["train_random"])) == (9, 10)


def backwards(count):
    return range(count - 1, -1, -1)


def test_a_short_video_repeats_its_last_frame_in_training():
    found = frame_choice.interval_frames(3, 5, random.Random(0).choice, np.random.default_rng(0).permutation)
    assert found == [0, 1, 2, 2, 2] == frame_choice.middle_frames(3, 5)
    for rule in (frame_choice.middle_frames, lambda *a: frame_choice.interval_frames(*a, random.choice, range)):
        with pytest.raises(InputError, match="has no frame"):
            rule(0, 5)


def test_every_frame_but_an_intervals_last_is_drawn():
    rng, drawn = random.Random(1), collections.Counter()
    for _ in range(400):
        drawn.update(frame_choice.interval_frames(12, 3, rng.choice, np.random.default_rng(0).permutation))
    assert set(drawn) == {0, 1, 2, 4, 5, 6, 8, 9, 10} and min(drawn.values()) > 90


def test_vlmevalkits_frames(recorded):
    for case in recorded["vlmevalkit"]:
        if case["rule"] == "by_fps":
            found = frame_choice.rate_frames(case["frames"], case["video_fps"], case["fps"])
        elif case["rule"] == "uniform_inner":
            found = frame_choice.inner_frames(case["frames"], case["nframe"])
        else:
            found = frame_choice.vsi_frames(case["frames"], case["nframe"], case["rule"].removeprefix("vsi_"))
        assert found == case["indices"], case
    assert len(recorded["vlmevalkit"]) == 396


def test_the_frames_of_transformers(recorded):
    cases = recorded["transformers"]["cases"]
    for case in cases:
        shift = None if case["initial_shift"] is True else case["initial_shift"]
        if case["indices"] == "error":
            with pytest.raises(InputError, match="ask for at most as many"):
                frame_choice.transformers_frames(case["frames"], case["num_frames"], shift)
        else:
            found = frame_choice.transformers_frames(case["frames"], case["num_frames"], shift)
            assert found == case["indices"], case
    assert len(cases) == 216
