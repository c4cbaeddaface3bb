"""The stream of batches: complete, the same for any hosts, workers and resumes, and honest about broken samples."""

import collections
import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from internvl_jax.data.rows import pipeline
from internvl_jax.data.rows.batch import Batch, stack_rows
from internvl_jax.errors import InputError

ROWS = 4


def config_of(tiny, **options):
    defaults = pipeline.PipelineConfig(
        meta=tiny.meta,
        kind="conversations",
        token_budget=199,
        tile_budget=11,
        max_open=3,
        pack=True,
        weighting="square",
        seed=5,
        over_long="error",
        max_skipped=0,
        cache_dir=None,
        workers=0,
        threads=0,
    )
    return dataclasses.replace(defaults, **options)


def pipeline_of(tiny, processor, **options):
    return pipeline.Pipeline(config_of(tiny, **options), processor)


def take(iterator, count):
    return [next(iterator) for _ in range(count)]


def assert_same(got: Batch, expected: Batch):
    for name, one, other in zip(Batch._fields, got, expected, strict=True):
        np.testing.assert_array_equal(one, other, err_msg=name)


def samples_of_epoch(made, epoch):
    first = sum(map(made.plan.rows, range(epoch)))
    rows = range(first, first + made.plan.rows(epoch))
    return collections.Counter(int(sample) for row in rows for sample in made.plan.samples(row))


@pytest.mark.parametrize("pack", [True, False])
def test_every_sample_once_an_epoch(tiny, processor, pack):
    made = pipeline_of(tiny, processor, pack=pack)
    for epoch in range(3):
        assert samples_of_epoch(made, epoch) == dict.fromkeys(range(23), 1)
    assert made.plan.packs(0).samples.tolist() != made.plan.packs(1).samples.tolist()
    assert made.plan.rows(0) == 23 if not pack else made.plan.rows(0) < 23


def test_repeat_time(tiny, processor):
    tiny.entries["texts"]["repeat_time"] = 2.5
    tiny.entries["singles"]["repeat_time"] = 0.5
    tiny.entries["pairs"]["repeat_time"] = 3
    tiny.write_meta()
    expected = {k: 3 if k < 5 else 2 for k in range(11)}  # 2.5 x 11 = 27
    expected |= dict.fromkeys(range(11, 14), 1) | dict.fromkeys(range(18, 21), 3) | dict.fromkeys((21, 22), 1)
    assert samples_of_epoch(pipeline_of(tiny, processor), 1) == expected


def test_repeat_time_that_leaves_nothing(tiny, processor):
    tiny.entries["pretrain"]["repeat_time"] = 0.1
    tiny.write_meta()
    with pytest.raises(InputError, match=r"'pretrain' has 2 samples, of which repeat_time 0\.1 leaves none"):
        pipeline_of(tiny, processor)


def test_row_is_its_samples(tiny, processor):
    tiny.entries["singles"]["data_augment"] = False
    tiny.write_meta()
    made = pipeline_of(tiny, processor)
    for number in range(made.plan.rows(0)):
        row, _ = made.row(number)
        samples = [made.corpus.load(sample, np.random.default_rng(0)) for sample in made.plan.samples(number)]
        tokens = np.concatenate([sample.tokens_T for sample in samples])
        assert row.tokens_BT[0, : len(tokens)].tolist() == tokens.tolist()
        tiles = np.concatenate([sample.tiles_GHWC for sample in samples])
        np.testing.assert_array_equal(row.tiles_GHWC[row.tile_mask_G], tiles)
        assert row.segments_BT.max() == len(samples)


def test_supervision_reaches_the_weights(tiny, processor):
    """What the loss asks for, decoded: the answer, then the end of the turn."""
    tiny.write_meta(pairs=tiny.entries["pairs"])
    row, _ = pipeline_of(tiny, processor, pack=False).row(0)
    assert processor.tokenizer.decode(row.targets_BT[row.weights_BT > 0], skip_special=False) == "no<|im_end|>"
    assert row.weights_BT.max() == pytest.approx(3**-0.5)  # "no" is two tokens


@pytest.mark.parametrize("kinds", [["texts"], ["singles"], ["pretrain"], ["texts", "singles", "pairs", "pretrain"]])
def test_all_batches_have_one_shape(tiny, processor, kinds):
    tiny.write_meta(**{kind: tiny.entries[kind] for kind in kinds})
    batch = next(pipeline_of(tiny, processor).batches(ROWS))
    assert [array.shape for array in batch[:7]] == [(4, 199)] * 5 + [(44, 8, 8, 3), (44,)]
    assert batch.weights_BT.sum() > 0
    assert batch.tile_mask_G.any() == (kinds not in (["texts"], ["pretrain"]))


def test_text_alone_needs_no_tiles(tiny, processor):
    tiny.write_meta(texts=tiny.entries["texts"])
    iterator = pipeline_of(tiny, processor, tile_budget=0).batches(ROWS)
    batch = next(iterator)
    iterator.close()
    assert batch.tiles_GHWC.shape == (0, 8, 8, 3) and batch.segments_BT.max() > 1


@pytest.mark.parametrize("hosts", [2, 4])
def test_stream_does_not_depend_on_hosts(tiny, processor, hosts):
    made = pipeline_of(tiny, processor)
    whole = take(made.batches(ROWS), 7)
    parts = [take(made.batches(ROWS, host=host, hosts=hosts), 7) for host in range(hosts)]
    for step, batch in enumerate(whole):
        assert_same(stack_rows([part[step] for part in parts]), batch)


def test_a_step_has_the_same_rows_however_they_are_arranged(tiny, processor):
    made = pipeline_of(tiny, processor)
    plain, arranged = take(made.batches(ROWS), 5), take(made.batches(ROWS, micro_batches=2), 5)
    halves = [take(made.batches(ROWS, micro_batches=2, host=host, hosts=2), 5) for host in (0, 1)]
    moved = 0
    for step, (batch, other) in enumerate(zip(plain, arranged, strict=True)):
        assert_same(stack_rows([half[step] for half in halves]), other)
        places = [made.plan.cost(step * ROWS + row) for row in range(ROWS)]
        order = pipeline.arrange(np.array(places), 2)
        moved += order.tolist() != [0, 1, 2, 3]
        np.testing.assert_array_equal(other.tokens_BT, batch.tokens_BT[order])
        np.testing.assert_array_equal(other.tile_mask_G.reshape(ROWS, -1), batch.tile_mask_G.reshape(ROWS, -1)[order])
    assert moved


def test_resume_anywhere_on_other_hosts(tiny, processor):
    whole = take(pipeline_of(tiny, processor).batches(ROWS), 9)
    for done in range(8):
        before = pipeline_of(tiny, processor).batches(ROWS, host=1, hosts=2)
        take(before, done)
        state = json.loads(json.dumps(before.state()))
        assert state["rows"] == done * ROWS
        made = pipeline_of(tiny, processor)
        parts = [next(made.batches(ROWS, host=host, hosts=4, state=state)) for host in range(4)]
        assert_same(stack_rows(parts), whole[done])


@pytest.mark.parametrize("change", ["annotation", "tile limit", "budget", "seed"])
def test_resume_with_other_data_is_refused(tiny, processor, change):
    state = pipeline_of(tiny, processor).batches(ROWS).state()
    options = {}
    if change == "annotation":
        path = tiny.folder / "texts.jsonl"
        path.write_text(path.read_text().replace("how many?", "how much?"))
    elif change == "tile limit":
        image = dataclasses.replace(processor.image_config, max_tiles=3)
        processor = dataclasses.replace(processor, image_config=image)
    else:
        options = {"budget": {"token_budget": 211}, "seed": {"seed": 7}}[change]
    with pytest.raises(InputError, match=r"row 0, seed 5.*belongs to another data order"):
        pipeline_of(tiny, processor, **options).batches(ROWS, state=state)


def test_moved_folder_keeps_its_order(tiny, processor, tmp_path):
    state = pipeline_of(tiny, processor).batches(ROWS).state()
    moved = tmp_path.with_name("moved")
    tmp_path.rename(moved)
    (moved / "meta.json").write_text((moved / "meta.json").read_text().replace(str(tmp_path), str(moved)))
    tiny.folder = moved
    pipeline_of(tiny, processor).batches(ROWS, state=state)


def test_threads_do_not_change_the_stream(tiny, processor):
    inline = take(pipeline_of(tiny, processor).batches(ROWS), 7)
    for batch, expected in zip(take(pipeline_of(tiny, processor, threads=3).batches(ROWS), 7), inline, strict=True):
        assert_same(batch, expected)


def test_seed_changes_order(tiny, processor):
    orders = [pipeline_of(tiny, processor, seed=seed).plan.packs(0).samples.tolist() for seed in (5, 7)]
    assert orders[0] != orders[1] and sorted(orders[0]) == sorted(orders[1])


def test_jpeg_is_drawn_by_row(tiny, processor):
    """Augmented tiles differ from the file's, are equal when asked again, and differ in the next epoch."""
    tiny.write_meta(singles=tiny.entries["singles"])
    made = pipeline_of(tiny, processor, pack=False)
    sample = int(made.plan.samples(0)[0])
    again = next(row for row in range(7, 14) if made.plan.samples(row)[0] == sample)
    plain = made.corpus.readers[0]
    plain = dataclasses.replace(plain, dataset=dataclasses.replace(plain.dataset, data_augment=False))
    tiles = plain.load(sample, None).tiles_GHWC
    first, same, later = (made.row(row)[0].tiles_GHWC[: len(tiles)] for row in (0, 0, again))
    assert (first != tiles).any() and (first == same).all() and (first != later).any()


def break_pictures(tiny):
    (tiny.folder / "p1.png").unlink()
    path = tiny.folder / "p2.png"
    path.write_bytes(path.read_bytes()[:100])


def test_broken_samples_leave_gaps_and_are_counted(tiny, processor, caplog):
    made = pipeline_of(tiny, processor, max_skipped=5, pack=False)
    rows = [made.row(number)[0] for number in range(23)]
    break_pictures(tiny)  # 2 singles and 2 pairs
    iterator = made.batches(1)
    for number, batch in enumerate(take(iterator, 23)):
        expected = rows[number]
        if int(made.plan.samples(number)[0]) in (12, 13, 18, 19):
            expected = Batch(*(None if part is None else np.zeros_like(part) for part in expected))
        assert_same(batch, expected)
    assert iterator.skipped == 4
    take(iterator, 23)
    assert iterator.skipped == 4  # the same ones
    lines = [line for line in caplog.messages if line.startswith("skipped ")]
    assert len(lines) == 4 and any("singles.jsonl:2: " in line and "p1.png does not exist" in line for line in lines)
    assert any("singles.jsonl:3: " in line and "p2.png" in line and "truncated" in line for line in lines)


def test_too_many_broken_samples_stop_the_run(tiny, processor):
    made = pipeline_of(tiny, processor, max_skipped=3)
    break_pictures(tiny)
    with pytest.raises(InputError, match=r"broken sample number 4, over the limit of 3; run launch\.check_data"):
        take(made.batches(ROWS), 23)


def test_sample_without_length_counts_as_broken(tiny, processor):
    path = tiny.folder / "texts.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:4], "{broken", *lines[5:]]))
    with pytest.raises(InputError, match=r"texts\.jsonl:5 is not valid JSON.*broken sample number 1"):
        pipeline_of(tiny, processor)
    made = pipeline_of(tiny, processor, max_skipped=1)
    assert samples_of_epoch(made, 0) == dict.fromkeys({*range(23)} - {4}, 1)
    assert made.batches(ROWS).skipped == 1


def test_wrong_noted_size_is_told(tiny, processor):
    made = pipeline_of(tiny, processor)
    Image.new("RGB", (8, 8)).save(tiny.folder / "p0.png")
    reasons = [reason for row in range(made.plan.rows(0)) for reason in made.row(row)[1]]
    assert any("singles.jsonl:1 has" in reason and "correct the width and height" in reason for reason in reasons)


def test_over_long_sample(tiny, processor, caplog):
    with pytest.raises(InputError, match=r"singles\.jsonl:1 has 50 tokens and 5 tiles, over the row's budget"):
        pipeline_of(tiny, processor, tile_budget=4)
    made = pipeline_of(tiny, processor, tile_budget=4, over_long="drop")
    dropped = set(made.dropped.tolist())
    assert 11 in dropped and 13 not in dropped and samples_of_epoch(made, 0) == dict.fromkeys({*range(23)} - dropped, 1)
    assert any(
        "dropped" in record.getMessage() and "singles.jsonl:1" in record.getMessage() for record in caplog.records
    )


def test_noted_length_that_is_wrong_is_told(tiny, processor, caplog):
    tiny.entries["texts"]["length"] = 12
    tiny.write_meta()
    pipeline_of(tiny, processor)
    assert [line.split("/")[-1] for line in caplog.messages] == ["texts.jsonl has 11 samples, not 12"]


def test_nothing_left(tiny, processor):
    with pytest.raises(InputError, match="no sample is left"):
        pipeline_of(tiny, processor, token_budget=3, over_long="drop")


def test_rows_and_samples_must_divide_among_hosts(tiny, processor):
    made = pipeline_of(tiny, processor, pack=False)
    with pytest.raises(InputError, match="host 0 of 3 cannot take its part of 4 rows"):
        made.batches(ROWS, hosts=3)
    for samples, hosts in ((4, 3), (2, 4)):
        with pytest.raises(InputError, match=f"host 0 of {hosts} cannot take its part of {samples} samples"):
            made.rows_needed(samples, 5, hosts)
        with pytest.raises(InputError, match=f"host 0 of {hosts} cannot take its part of {samples} samples"):
            made.groups(samples, 12, 1, hosts=hosts)


def test_unknown_policy(tiny):
    with pytest.raises(InputError, match="over_long is 'cut'"):
        config_of(tiny, over_long="cut")


def test_worker_processes_do_not_change_the_stream(tiny, processor):
    """The one slow test here: two processes start."""
    from absl import flags

    flags.FLAGS(["test"])
    inline = take(pipeline_of(tiny, processor).batches(ROWS), 5)
    iterator = pipeline_of(tiny, processor, workers=2).batches(ROWS)
    try:
        for batch, expected in zip(take(iterator, 5), inline, strict=True):
            assert_same(batch, expected)
    finally:
        iterator.close()
