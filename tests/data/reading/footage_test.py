"""Videos in released annotations: what is planned is what is loaded, and frames are drawn as released."""

import dataclasses
import json
import shutil
import types

import numpy as np
import pytest

from internvl_jax.data.media import images, tiling, video
from internvl_jax.data.reading import check, preferences, prompts, samples, sources
from internvl_jax.data.rows import pipeline
from internvl_jax.data.rows.packing import PackingConfig
from internvl_jax.errors import InputError
from internvl_jax.making import pairs
from tests.data.conftest import turns

LINE = {"video": "clip.mp4", "conversations": turns("<video>\nhow many circles?", "two")}


@pytest.fixture(scope="module")
def processor(processor):
    """The toy's, for frames of 128 x 96 pixels."""
    config = dataclasses.replace(processor.image_config, max_pixels=20_000)
    return dataclasses.replace(processor, image_config=config)


@pytest.fixture
def films(tiny, golden):
    for name in ("clip.mp4", "clip.gif"):
        shutil.copy(golden / "video/videos" / name, tiny.folder / name)
    return tiny


def reader(films, processor, *lines, parse=sources.parse_record, **options):
    entry = films.annotate("films", [{**LINE, **line} for line in lines], **options)
    return samples.SampleReader(*opened(films, entry), processor, parse)


def test_what_is_measured_is_loaded(films, processor):
    """A line for every frame, as the released SFT code has them; the number is drawn from 8 to 32 by the line."""
    read = reader(films, processor, *({"id": k} for k in range(40)))
    counts = [read.record(k).footage.frames for k in range(40)]
    assert min(counts) >= 8 and max(counts) <= 32 and len(set(counts)) > 12
    assert counts == [read.record(k).footage.frames for k in range(40)]
    sample = read.load(3, np.random.default_rng(0))
    assert read.measure(3) == read.measure(3, trust_notes=False) == (len(sample.tokens_T), counts[3])
    assert len(sample.tiles_GHWC) == counts[3] and sample.images == (1,) * counts[3]
    lines = "\n".join(f"Frame-{i}: <image>" for i in range(1, counts[3] + 1))
    spoken = turns(f"{lines}\nhow many circles?", "two")
    expected, supervised = processor.template.encode_training(spoken, [2] * counts[3], processor.tokenizer)
    np.testing.assert_array_equal(sample.tokens_T, expected)
    np.testing.assert_array_equal(sample.supervised_T, supervised)


def test_frames_are_drawn_anew_within_their_intervals(films, processor):
    read = reader(films, processor, {}, min_num_frame=4, max_num_frame=4)
    one = tiling.frame_tiles(processor.image_config)
    every = video.show_video(films.folder / "clip.mp4", lambda _: range(40), lambda im: images.tile_image(im, one)[0])
    drawn = set()
    for seed in range(6):
        tiles_GHWC = read.load(0, np.random.default_rng(seed)).tiles_GHWC
        places = tuple(next(i for i in range(40) if (every.frames[i] == tile).all()) for tile in tiles_GHWC)
        assert [place // 10 for place in places] == [0, 1, 2, 3] and all(place % 10 < 9 for place in places)
        drawn.add(places)
    assert len(drawn) > 3
    again = read.load(0, np.random.default_rng(5)).tiles_GHWC
    np.testing.assert_array_equal(again, tiles_GHWC)


def test_a_clip_is_all_that_is_shown(films, processor):
    read = reader(films, processor, {"clip": [1.0, 1.8]}, min_num_frame=2, max_num_frame=2)
    seen = set()
    for seed in range(12):
        footage = read.record(0).footage
        info = video.video_info(footage.path)
        assert footage._within(info) == (10, 8)
        seen |= {tile.tobytes() for tile in read.load(0, np.random.default_rng(seed)).tiles_GHWC}
    one = tiling.frame_tiles(processor.image_config)
    clip = video.show_video(footage.path, lambda _: range(10, 18), lambda im: images.tile_image(im, one).tobytes())
    assert len(seen) > 3 and seen <= set(clip.frames)


def test_short_videos_repeat_their_last_frame(films, processor):
    read = reader(films, processor, {"video": "clip.gif"}, min_num_frame=12, max_num_frame=12)
    tiles_GHWC = read.load(0, np.random.default_rng(0)).tiles_GHWC
    assert len(tiles_GHWC) == 12 and (tiles_GHWC[9:] == tiles_GHWC[9]).all()
    assert len({tile.tobytes() for tile in tiles_GHWC[:10]}) == 10


def test_videos_are_never_degraded_and_have_one_tile_a_frame(films, processor):
    plain = reader(films, processor, {}, max_dynamic_patch=4).load(0, np.random.default_rng(1))
    augmented = reader(films, processor, {}, data_augment=True).load(0, np.random.default_rng(1))
    np.testing.assert_array_equal(plain.tiles_GHWC, augmented.tiles_GHWC)


def test_without_a_mark_frames_come_first(films, processor):
    bounds = {"min_num_frame": 1, "max_num_frame": 1}
    marked = reader(films, processor, {}, **bounds).record(0)
    bare = reader(films, processor, {"conversations": turns("how many circles?", "two")}, **bounds).record(0)
    assert marked.dialogues == bare.dialogues
    assert marked.dialogues[0][1]["value"] == "Frame-1: <image>\nhow many circles?"


def test_pairs_have_the_lines_of_mpo(films, processor):
    line = {"question": "<video>\nhow many?", "chosen": "two", "rejected": "one", "conversations": None}
    bounds = {"min_num_frame": 2, "max_num_frame": 2}
    read = reader(films, processor, line, parse=preferences.parse_pair, **bounds)
    chosen, rejected = read.record(0).dialogues
    assert chosen[0] == rejected[0] == {"from": "human", "value": "Frame1: <image>\nFrame2: <image>\nhow many?"}
    sample = read.load(0, np.random.default_rng(0))
    assert len(sample.tiles_GHWC) == 2 and len(sample.starts) == 2


def test_prompts_show_the_middle_of_every_interval(films, processor):
    """As many tokens as were measured; without its video only the words are left."""
    line = {"video": "clip.mp4", "clip": [1, 3], "question": "how many?", "answer": "two"}
    entry = films.annotate("films", [line], min_num_frame=4, max_num_frame=4)
    (prompt,) = prompts.Prompts([prompts.LineReader(*opened(films, entry))])
    inputs = prompts.encode_prompt(prompt, processor)
    assert prompts.measure(prompt, processor) == (len(inputs.tokens_T), 4) and len(inputs.tiles_GHWC) == 4
    one = tiling.frame_tiles(processor.image_config)
    middles = video.show_video(prompt.film.path, lambda _: [12, 17, 22, 27], lambda im: images.tile_image(im, one))
    np.testing.assert_array_equal(inputs.tiles_GHWC, np.concatenate(middles.frames))
    told = processor.tokenizer.decode(inputs.tokens_T, skip_special=False)
    assert all(f"Frame{number}: <img>" in told for number in range(1, 5)) and told.count("Frame") == 4
    blind = processor.tokenizer.decode(prompts.encode_blind(prompt, processor, "").tokens_T, skip_special=False)
    assert "Frame" not in blind and "user\nhow many?<|im_end|>" in blind
    other = dataclasses.replace(prompt, footage=dataclasses.replace(prompt.footage, clip=None))
    assert len({prompt.key, other.key, dataclasses.replace(prompt, footage=None).key}) == 3


def test_pairs_made_of_a_video_are_read_again(films, processor):
    line = {"video": "clip.mp4", "clip": [1, 3], "question": "how many?", "answer": "two"}
    entry = films.annotate("films", [line])
    (prompt,) = prompts.Prompts([prompts.LineReader(*opened(films, entry))])
    said = [types.SimpleNamespace(text=text) for text in ("two", "one")]
    record = preferences.parse_pair(pairs._line(prompt, said).encode(), "p:1", prompt.dataset)
    assert (record.footage.path, record.footage.clip) == (prompt.film.path, (1, 3))


def opened(films, entry):
    (dataset,) = sources.read_meta(films.write_meta(films=entry))
    return dataset, sources.scan_lines(dataset.annotation)[0]


def test_batches_have_every_frame_and_are_the_same_again(films, processor):
    """Planned from lengths alone, packed with texts and pictures, and drawn anew in the next epoch."""
    lines = [{**LINE, "id": k, "video": name} for k, name in enumerate(("clip.mp4", "clip.gif", "clip.mp4"))]
    entry = films.annotate("films", lines, min_num_frame=3, max_num_frame=5)
    films.write_meta(films=entry, texts=films.entries["texts"], singles=films.entries["singles"])
    options = {"kind": "conversations", "token_budget": 240, "tile_budget": 11, "max_open": 3, "pack": True}
    options |= {"weighting": "square", "seed": 5, "over_long": "error", "max_skipped": 0}
    config = pipeline.PipelineConfig(films.meta, cache_dir=None, workers=0, threads=0, **options)
    made, again = (pipeline.Pipeline(config, processor) for _ in range(2))
    one = tiling.frame_tiles(processor.image_config)
    tile = lambda image: images.tile_image(image, one).tobytes()
    every = set(video.show_video(films.folder / "clip.mp4", lambda info: range(info.frames), tile).frames)
    shown = []
    for number in range(made.plan.rows(0) + made.plan.rows(1)):
        (row, skipped), (same, _) = made.row(number), again.row(number)
        assert skipped == [] and (row.tokens_BT == same.tokens_BT).all() and (row.tiles_GHWC == same.tiles_GHWC).all()
        patches = int((row.tokens_BT == processor.tokenizer.image_context).sum())
        assert patches == 2 * int(row.tile_mask_G.sum())
        if 0 in made.plan.samples(number):
            shown.append({tile.tobytes() for tile in row.tiles_GHWC} & every)
    assert len(shown) == 2 and min(map(len, shown)) >= 3 and shown[0] != shown[1]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ({"video": 3}, "films.jsonl:1: video is 3; it must be a text"),
        ({"image": "p0.png"}, "films.jsonl:1 has an image and a video; a line has one of them"),
        ({"clip": [2, 1]}, "clip from 2 to 1 s"),
        ({"conversations": turns("<video> and <video>", "two")}, "has 2 <video> placeholders but one video"),
        ({"conversations": turns("<video> and <image>", "two")}, "placeholders but"),
        ({"video": "../clip.mp4"}, "has the video '../clip.mp4', which is not below the root"),
        ({"video": "no.mp4"}, "films.jsonl:1: video .*no.mp4 does not exist"),
        ({"video": "p0.png"}, "films.jsonl:1: video .*p0.png"),
        ({"clip": [3.99, 4.05]}, "films.jsonl:1: .* is 4 s long, and no frame lies in its clip"),
    ],
)
def test_faults_name_the_line(films, processor, line, sentence):
    with pytest.raises(InputError, match=sentence):
        reader(films, processor, line).measure(0, trust_notes=False)


def test_bounds_of_a_meta_file_are_checked(films, processor):
    with pytest.raises(InputError, match="has min_num_frame 40, over its max_num_frame 9"):
        reader(films, processor, {}, min_num_frame=40, max_num_frame=9)


def test_check_counts_videos_and_finds_what_is_none(films, processor):
    lines = [{"id": k, "video": name} for k, name in enumerate(("clip.mp4", "clip.gif", "no.mp4", "p0.png"))]
    entry = films.annotate("films", [{**LINE, **line} for line in lines], min_num_frame=3, max_num_frame=3)
    films.write_meta(films=entry, texts=films.entries["texts"])
    report = check.check(films.meta, processor, PackingConfig(400, 20, 4), decode=True, render=1)
    assert [problem.split(": ")[0].rpartition("/")[2] for problem in report.problems] == [
        "films.jsonl:3",
        "films.jsonl:4",
    ]
    summary = report.summary()
    assert (summary["samples"], summary["videos"], summary["frames"], summary["tiles"]) == (15, 2, 6, 6)
    assert json.dumps(summary)
