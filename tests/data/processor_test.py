"""From OpenAI-style messages to tokens and tiles, and reading released directories."""

import base64
import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from internvl_jax.data import processor
from internvl_jax.data.media import images, tiling
from internvl_jax.data.text import templates, thinking
from internvl_jax.data.text.tokenizer import Tokenizer
from internvl_jax.errors import InputError

IMAGE_CONFIG = tiling.ImageConfig(
    tile_size=28,
    tokens_per_tile=5,
    min_tiles=1,
    max_tiles=6,
    thumbnail=True,
    apply_exif=False,
    max_pixels=1_000_000,
)


@pytest.fixture(scope="module")
def process(request):
    tokenizer = Tokenizer.load(request.path.parents[1] / "golden/templates/qwen_subset")
    return processor.Processor(IMAGE_CONFIG, tokenizer, templates.INTERNVL2_5)


def picture(width, height, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def url(image):
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def user(*content):
    return {"role": "user", "content": content[0] if isinstance(content[0], str) else list(content)}


def text(string):
    return {"type": "text", "text": string}


def image(source):
    return {"type": "image", "image": source}


def test_text_alone(process):
    inputs = process([user("Hello")])
    prompt = "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    assert process.tokenizer.decode(inputs.tokens_T, skip_special=False).endswith(prompt)
    assert inputs.tiles_GHWC.shape == (0, 28, 28, 3) and inputs.tiles_GHWC.dtype == np.uint8
    assert inputs.image_token_counts == ()


def test_pictures_keep_their_place_and_order(process):
    """2 + 1 tiles for the wide one, 1 for the square one; both follow each other as written."""
    wide, square = picture(56, 28, 1), picture(28, 28, 2)
    inputs = process([user(text("Image-1: "), image(wide), text("Image-2: "), image(square), text("Compare."))])
    assert inputs.image_token_counts == (15, 5)
    expected = [images.tile_image(wide, IMAGE_CONFIG), images.tile_image(square, IMAGE_CONFIG)]
    np.testing.assert_array_equal(inputs.tiles_GHWC, np.concatenate(expected))
    one, two = ("<img>" + "<IMG_CONTEXT>" * n + "</img>" for n in (15, 5))
    prompt = f"user\nImage-1: {one}\nImage-2: {two}\nCompare.<|im_end|>\n<|im_start|>assistant\n"
    assert process.tokenizer.decode(inputs.tokens_T, skip_special=False).endswith(prompt)


def test_dialogues_with_pictures_equal_the_training_side(process):
    inputs = process([user(image(picture(28, 28)), text("What?")), {"role": "assistant", "content": "x"}, user("Why?")])
    turns = ("<image>\nWhat?", "x", "Why?", "y")
    record = [{"from": ("human", "gpt")[i % 2], "value": value} for i, value in enumerate(turns)]
    tokens, _ = process.template.encode_training(record, (5,), process.tokenizer)
    assert tokens[: len(inputs.tokens_T)].tolist() == inputs.tokens_T.tolist()


def test_every_way_to_give_a_picture(process, tmp_path):
    source = picture(56, 28)
    source.save(tmp_path / "a.png")
    given = [
        image(source),
        image(tmp_path / "a.png"),
        image(str(tmp_path / "a.png")),
        image((tmp_path / "a.png").read_bytes()),
        {"type": "image_url", "image_url": {"url": url(source)}},
        {"type": "image_url", "image_url": url(source)},
        {"type": "image_url", "image_url": (tmp_path / "a.png").as_uri()},
        {"type": "image", "path": str(tmp_path / "a.png")},
        {"type": "image", "url": (tmp_path / "a.png").as_uri()},
        {"type": "image", "url": url(source)},
        {"type": "image", "base64": url(source)},
        {"type": "image", "base64": url(source).partition(",")[2]},
    ]
    for part in given:
        np.testing.assert_array_equal(process([user(part)]).tiles_GHWC, images.tile_image(source, IMAGE_CONFIG))


def test_tile_limits_of_a_request(process):
    wide = picture(84, 28)
    detail = {"type": "image_url", "image_url": {"url": url(wide), "detail": "low"}}
    assert process([user(image(wide))]).image_token_counts == (20,)
    assert process([user(image(wide))], max_dynamic_patch=1).image_token_counts == (5,)
    assert process([user(detail, image(wide))]).image_token_counts == (5, 20)
    with pytest.raises(InputError, match="max_tiles is 0"):
        process([user(image(wide))], max_dynamic_patch=0)


@pytest.mark.parametrize(
    ("options", "limit"),
    [({"max_dynamic_patch": 2}, 2), ({"max_dynamic_patch": 2, "detail": "low"}, 2), ({"max_dynamic_patch": None}, 1)],
)
def test_a_picture_has_a_tile_limit_of_its_own(process, options, limit):
    """It wins over the request's and over the picture's detail, in either direction."""
    wide = picture(112, 28)
    part = {"type": "image_url", "image_url": {"url": url(wide), **options}}
    inputs = process([user(part, image(wide))], max_dynamic_patch=1)
    own, other = images.tile_image(wide, tiling.limit_tiles(IMAGE_CONFIG, limit)), process([user(image(wide))], 1)
    np.testing.assert_array_equal(inputs.tiles_GHWC, np.concatenate([own, other.tiles_GHWC]))
    assert inputs.image_token_counts == (5 * len(own), 5)


def test_bytes_may_stand_for_a_url(process):
    buffer = io.BytesIO()
    picture(56, 28).save(buffer, format="PNG")
    inputs = process([user({"type": "image_url", "image_url": {"url": buffer.getvalue(), "max_dynamic_patch": 2}})])
    np.testing.assert_array_equal(inputs.tiles_GHWC, process([user(image(picture(56, 28)))]).tiles_GHWC)


@pytest.mark.parametrize("wrong", [0, 4097, 10**8, True, 2.0, "2"])
def test_a_tile_limit_that_no_picture_can_have(process, wrong):
    part = {"type": "image_url", "image_url": {"url": url(picture(9, 9)), "max_dynamic_patch": wrong}}
    with pytest.raises(InputError, match=r"max_dynamic_patch of part 0 of message 0 is .*; it must be .* 4,096"):
        process([user(part)])


def test_tiles_are_counted_without_decoding(process, monkeypatch):
    wide = picture(112, 28)
    low = {"type": "image_url", "image_url": {"url": url(wide), "detail": "low"}}
    messages = [user(image(wide)), {"role": "assistant", "content": "x"}, user(low, text("?"), image(picture(28, 28)))]
    expected = {limit: len(process(messages, limit).tiles_GHWC) for limit in (None, 2)}
    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "load", None)  # what decodes
        assert {limit: process.num_tiles(messages, limit) for limit in (None, 2)} == expected == {None: 7, 2: 5}
    with pytest.raises(InputError, match=r"part 0 of message 0: .* not a picture"):
        process.num_tiles([user(image(b"junk"))])
    with pytest.raises(InputError, match="path on this machine"):
        process.num_tiles([user(image("a.png"))], allow_paths=False)


@pytest.mark.parametrize("begun", ["<think>\n", "<think>\n\n</think>\n\n", "The answer is", ""])
def test_an_answer_may_be_begun(process, begun):
    tokens = process([user("why?")], begun=begun).tokens_T.tolist()
    plain = process([user("why?")]).tokens_T.tolist()
    assert tokens == plain + process.begin(begun)
    assert process.tokenizer.decode(process.begin(begun)) == begun


def test_placeholder_and_control_strings_in_messages_are_text(process):
    inputs = process([user(image(picture(28, 28)), text("<image> <IMG_CONTEXT> <|im_end|>"))])
    tokens = inputs.tokens_T.tolist()
    assert tokens.count(process.tokenizer.image_context) == 5
    assert tokens.count(process.tokenizer.im_end) == 2


def test_the_check_of_tokens_against_tiles_can_fail(process):
    inputs = process([user(image(picture(28, 28)))])
    context = process.tokenizer.image_context
    processor.check_inputs(inputs, 5, context)
    with pytest.raises(InputError, match="5 picture tokens but its 1 tiles need 7"):
        processor.check_inputs(inputs, 7, context)


@pytest.mark.parametrize(
    "messages, message",
    [
        ([], "last message must be the user's"),
        ([user("a"), {"role": "assistant", "content": "b"}], "last message must be the user's"),
        ([user("a"), {"role": "system", "content": "b"}, user("c")], "message 1 of a conversation has role 'system'"),
        ([{"role": "tool", "content": "b"}], "message 0 must be an object with role"),
        ([user("a"), {"role": "user", "content": None}], "message 1 must have content"),
        ([user({"type": "input_audio"})], "part 0 of message 0 must be"),
        ([user({"type": "image_url", "image_url": {"url": "x", "detail": "ultra"}})], "part 0 of message 0 must be"),
        ([user({"type": "image", "path": 3})], "part 0 of message 0 must be"),
        ([user({"type": "image", "path": "a.png", "base64": "AA=="})], "part 0 of message 0 must be"),
        ([user({"type": "image", "base64": "?"})], "is not valid base64"),
        ([user({"type": "image", "url": "https://x.org/a.png"})], "is a remote address"),
        ([user({"type": "image", "url": "file://other/a.png"})], "is a file of the machine 'other'"),
        ([user({"type": "image_url", "image_url": {}})], "part 0 of message 0 must be"),
        ([user(text("a"), image("nowhere.png"))], "part 1 of message 0: image nowhere.png does not exist"),
        ([user(image(b"junk"))], "part 0 of message 0: image of 4 bytes is not a picture"),
        ([user(image(7))], "part 0 of message 0: image given as int"),
        ([{"role": "system", "content": [image(Image.new("RGB", (3, 5)))]}, user("a")], "only user messages"),
    ],
)
def test_bad_messages_are_refused(process, messages, message):
    with pytest.raises(InputError, match=message):
        process(messages)


def test_servers_read_no_files(process, tmp_path):
    picture(28, 28).save(tmp_path / "a.png")
    path, address = str(tmp_path / "a.png"), (tmp_path / "a.png").as_uri()
    for part in (
        image(path),
        {"type": "image_url", "image_url": {"url": path}},
        {"type": "image_url", "image_url": {"url": address}},
        {"type": "image", "path": path},
        {"type": "image", "url": address.replace("file", "FILE")},
    ):
        with pytest.raises(InputError, match="path on this machine"):
            process([user(part)], allow_paths=False)


def test_thinking_is_asked_for_by_the_released_system_text(process):
    inputs = process.with_thinking()([user("a")])
    given = process([{"role": "system", "content": thinking.THINKING_SYSTEM}, user("a")])
    assert inputs.tokens_T.tolist() == given.tokens_T.tolist() and len(thinking.THINKING_SYSTEM) == 608


def test_stop_ids_end_an_answer(process):
    assert process.stop_ids == (151645,)


def test_saved_and_read_again(process, tmp_path):
    process.tokenizer.save(tmp_path)
    section = json.loads(json.dumps(process.to_dict()))
    again = processor.Processor.from_dict(section, tmp_path)
    assert again.image_config == IMAGE_CONFIG and again.template is templates.INTERNVL2_5
    messages = [user(image(picture(84, 28)), text("What?"))]
    np.testing.assert_array_equal(again(messages).tokens_T, process(messages).tokens_T)


def test_unknown_and_missing_keys_are_refused(process, tmp_path):
    process.tokenizer.save(tmp_path)
    section = process.to_dict()
    for wrong, message in [
        ({"image": section["image"]}, r"lacks the fields \['template'\]"),
        (section | {"speed": 1}, r"unknown fields \['speed'\]"),
        (section | {"image": section["image"] | {"colour": 1}}, r"unknown fields \['colour'\]"),
        (section | {"image": {k: v for k, v in section["image"].items() if k != "thumbnail"}}, r"\['thumbnail'\]"),
        (section | {"template": "other"}, "template 'other' is unknown"),
        (section | {"image": 3}, "image is 3; it must be an object"),
    ]:
        with pytest.raises(InputError, match=message):
            processor.Processor.from_dict(wrong, tmp_path)


GITHUB = {
    "model_type": "internvl_chat",
    "force_image_size": 448,
    "dynamic_image_size": True,
    "min_dynamic_patch": 1,
    "max_dynamic_patch": 11,
    "use_thumbnail": True,
    "pad2square": False,
    "downsample_ratio": 0.5,
    "template": "internvl2_5",
    "vision_config": {"image_size": 448, "patch_size": 14},
}
HF = {
    "model_type": "internvl",
    "image_seq_length": 256,
    "downsample_ratio": 0.5,
    "vision_config": {"image_size": [448, 448], "patch_size": [14, 14]},
}


@pytest.fixture
def released(golden, tmp_path):
    """A writer of a released directory with this config.json."""

    def write(config, **files):
        for name in ("vocab.json", "merges.txt", "added_tokens.json", "tokenizer_config.json"):
            shutil.copy(golden / "templates/qwen_subset" / name, tmp_path)
        for name, content in ({"config": config} | files).items():
            (tmp_path / f"{name}.json").write_text(json.dumps(content))
        return tmp_path

    return write


def test_github_directories(released):
    config = processor.Processor.from_released(released(GITHUB)).image_config
    assert (config.tile_size, config.tokens_per_tile, config.min_tiles, config.max_tiles) == (448, 256, 1, 11)
    assert config.thumbnail and not config.apply_exif
    plain = processor.Processor.from_released(released(GITHUB | {"use_thumbnail": False, "force_image_size": 56}))
    assert not plain.image_config.thumbnail and plain.image_config.tokens_per_tile == 4
    static = processor.Processor.from_released(released(GITHUB | {"dynamic_image_size": False}))
    assert static.image_config.max_tiles == 1


def test_hf_directories(released):
    config = processor.Processor.from_released(released(HF)).image_config
    assert (config.tile_size, config.tokens_per_tile, config.min_tiles, config.max_tiles) == (448, 256, 1, 12)
    limited = released(HF, preprocessor_config={"min_patches": 2, "max_patches": 7})
    config = processor.Processor.from_released(limited).image_config
    assert (config.min_tiles, config.max_tiles) == (2, 7)


def test_released_directories_that_cannot_be_read(released):
    for config, message in [
        ({"model_type": "llama"}, "model_type is 'llama'"),
        (GITHUB | {"pad2square": True}, "pad2square"),
        (GITHUB | {"template": "Hermes-2"}, "template 'Hermes-2' is unknown"),
        (HF | {"vision_config": {"image_size": [448, 336]}}, "must be square"),
        (GITHUB | {"vision_config": {"image_size": 448}}, r"lacks vision_config\.patch_size"),
    ]:
        with pytest.raises(InputError, match=message):
            processor.Processor.from_released(released(config))
    directory = released(GITHUB)
    (directory / "merges.txt").unlink()
    with pytest.raises(InputError, match="has no tokenizer"):
        processor.Processor.from_released(directory)
    (directory / "config.json").unlink()
    with pytest.raises(InputError, match=r"config\.json is not there"):
        processor.Processor.from_released(directory)
