"""Pictures as the release reads them, and every way a picture can be bad."""

import base64
import dataclasses
import hashlib
import io
import json
import pathlib
import zlib

import numpy as np
import pytest
from PIL import Image

from internvl_jax.data.media import images, tiling
from internvl_jax.errors import InputError

CONFIG = tiling.ImageConfig(
    tile_size=56,
    tokens_per_tile=4,
    min_tiles=1,
    max_tiles=12,
    thumbnail=True,
    apply_exif=False,
    max_pixels=tiling.DEFAULT_MAX_PIXELS,
)
CASES = json.loads((pathlib.Path(__file__).parents[2] / "golden/preprocessing/expected.json").read_text())


def png(width=5, height=3, mode="RGB", **options):
    buffer = io.BytesIO()
    Image.new(mode, (width, height)).save(buffer, format="PNG", **options)
    return buffer.getvalue()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["file"])
def test_pixels_equal_the_released_ones(case, golden):
    """Decoding and the tiles of every recorded setting; two versions of Pillow round some resizes differently."""
    path = golden / "preprocessing" / "images" / case["file"]
    image = images.load_image(path, CONFIG)
    assert hashlib.sha256(image.tobytes()).hexdigest() == case["rgb_sha256"]
    assert images.image_size(path, CONFIG) == image.size == tuple(case["size"])
    for name, expected in case["tiles"].items():
        size, max_tiles, thumbnail = name.split("_")
        config = dataclasses.replace(
            CONFIG, tile_size=int(size), max_tiles=int(max_tiles[3:]), thumbnail=thumbnail == "thumb1"
        )
        tiles = images.tile_image(image, config)
        assert tiles.dtype == np.uint8
        assert len(tiles) == expected["num_tiles"]
        assert hashlib.sha256(tiles.transpose(0, 3, 1, 2).tobytes()).hexdigest() in expected["sha256"], name


def test_tiles_run_row_by_row_and_the_thumbnail_is_last():
    """A picture whose 3 x 2 tiles are of one grey each needs no resampling inside a tile."""
    config = dataclasses.replace(CONFIG, tile_size=7)
    grey = np.repeat(np.repeat(np.arange(6, dtype=np.uint8).reshape(2, 3) * 40, 7, 0), 7, 1)
    tiles = images.tile_image(Image.fromarray(np.stack([grey] * 3, -1)), config)
    assert tiles.shape == (7, 7, 7, 3)
    assert (
        [int(tile.min()) for tile in tiles[:6]] == [int(tile.max()) for tile in tiles[:6]] == [0, 40, 80, 120, 160, 200]
    )
    assert tiles[6].min() < 40 and tiles[6].max() > 160


def test_normalised_pixels_equal_the_released_ones(golden):
    path = golden / "preprocessing" / "images" / "rgba.png"
    corner = np.load(golden / "preprocessing" / "arrays.npz")["normalised_corner"]
    normalised = images.normalise(images.tile_image(images.load_image(path, CONFIG), CONFIG))
    assert normalised.dtype == np.float32
    np.testing.assert_allclose(normalised[0, :8, :8].transpose(2, 0, 1), corner, rtol=0, atol=1e-6)
    case = next(case for case in CASES if case["file"] == "rgba.png")
    expected = case["tiles"]["56_max12_thumb1"]["normalised_sum"]
    assert abs(normalised.astype(np.float64).sum() - expected) < 1e-6 * normalised.size


def test_exif_orientation_is_ignored_unless_asked_for(golden):
    path = golden / "preprocessing" / "images" / "exif_rotated.jpg"
    upright = dataclasses.replace(CONFIG, apply_exif=True)
    lying, standing = images.load_image(path, CONFIG), images.load_image(path, upright)
    assert lying.size == images.image_size(path, CONFIG) == (400, 260)
    assert standing.size == images.image_size(path, upright) == (260, 400)
    np.testing.assert_array_equal(np.asarray(standing), np.rot90(np.asarray(lying), -1))  # orientation 6


def test_alpha_is_dropped_not_blended():
    transparent = Image.new("RGBA", (2, 2), (200, 100, 50, 0))
    assert images.load_image(transparent, CONFIG).getpixel((0, 0)) == (200, 100, 50)


def test_16_bit_grey_is_clipped_as_released():
    grey = Image.fromarray(np.array([[0, 200, 255, 256, 40_000, 65_535]], np.uint16))
    assert grey.mode == "I;16"
    pixels = np.asarray(images.load_image(grey, CONFIG))
    assert pixels[0].tolist() == [[v] * 3 for v in (0, 200, 255, 255, 255, 255)]


def test_every_kind_of_source_gives_the_same_picture(golden):
    path = golden / "preprocessing" / "images" / "gray.png"
    data = path.read_bytes()
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    expected = np.asarray(images.load_image(path, CONFIG))
    for source in (str(path), data, url, Image.open(path)):
        np.testing.assert_array_equal(np.asarray(images.load_image(source, CONFIG)), expected)
        assert images.image_size(source, CONFIG) == (500, 333)


def test_jpeg_equals_the_recorded_degradation(golden):
    arrays = np.load(golden / "preprocessing" / "arrays.npz")
    np.testing.assert_array_equal(images.jpeg_roundtrip(arrays["jpeg_src"], 80), arrays["jpeg_q80"])


def test_random_jpeg_draws_a_quality_per_tile_from_the_whole_range():
    tile = np.random.default_rng(0).integers(0, 256, (13, 13, 3), dtype=np.uint8)
    degraded = images.random_jpeg(np.stack([tile] * 60), np.random.default_rng(3), low=97, high=99)
    choices = [images.jpeg_roundtrip(tile, quality) for quality in (97, 98, 99)]
    drawn = [next(i for i, choice in enumerate(choices) if (choice == one).all()) for one in degraded]
    assert set(drawn) == {0, 1, 2}
    again = images.random_jpeg(np.stack([tile] * 60), np.random.default_rng(3), low=97, high=99)
    np.testing.assert_array_equal(degraded, again)
    assert images.random_jpeg(np.zeros((0, 13, 13, 3), np.uint8), np.random.default_rng(3)).shape == (0, 13, 13, 3)


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.png does not exist"):
        images.load_image(tmp_path / "nowhere.png", CONFIG)
    with pytest.raises(InputError, match=r"写真 é\\n\\udcff\.png does not exist"):  # readable, and in one line
        images.load_image(tmp_path / "写真 é\n\udcff.png", CONFIG)


@pytest.mark.parametrize("name", ["gray.png", "tall_shapes.jpg", "rgba.png"])
@pytest.mark.parametrize("kept", [0.3, 0.7, 0.95])
def test_truncated_files_are_refused(name, kept, golden, tmp_path):
    data = (golden / "preprocessing" / "images" / name).read_bytes()
    path = tmp_path / name
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(InputError, match=f"{name} cannot be read, it may be truncated"):
        images.load_image(path, CONFIG)


@pytest.mark.parametrize("data", [b"", b"GIF", b"<html>not found</html>", bytes(1000)])
def test_what_is_not_a_picture_is_refused(data):
    with pytest.raises(InputError, match=f"image of {len(data)} bytes is not a picture"):
        images.load_image(data, CONFIG)


def claiming(width, height):
    """A PNG of a few bytes whose header claims this size."""
    data = bytearray(png())
    data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    return bytes(data)


@pytest.mark.parametrize("size", [(60_000_000, 1), (1, 60_000_000), (89_478_485, 1), (65_536, 2), (2, 65_536)])
def test_thin_pictures_are_refused_from_the_header(size):
    """They have few pixels, and take gigabytes to resize."""
    for read in (images.load_image, images.image_size):
        with pytest.raises(InputError, match=f"{size[0]} x {size[1]} pixels, longer than the limit of 65535"):
            read(claiming(*size), CONFIG)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_large_pictures_are_not_refused():
    for size in [(65_535, 1), (1, 65_535), (16_384, 10_922), (13_377, 13_377)]:
        assert images.image_size(claiming(*size), CONFIG) == size
    image = images.load_image(png(65_535, 1), CONFIG)
    assert images.tile_image(image, CONFIG).shape == (13, 56, 56, 3)


def test_bombs_are_refused_from_the_header():
    """The picture claims 20,000 x 20,000 pixels and has none, so decoding it would raise something else."""
    for read in (images.load_image, images.image_size):
        with pytest.raises(InputError, match=str(CONFIG.max_pixels)):
            read(claiming(20_000, 20_000), CONFIG)
    small = dataclasses.replace(CONFIG, max_pixels=14)
    with pytest.raises(InputError, match="5 x 3 pixels, more than the limit of 14"):
        images.load_image(png(), small)
    assert images.load_image(png(), dataclasses.replace(CONFIG, max_pixels=15)).size == (5, 3)


@pytest.mark.parametrize("url", ["http://a.org/b.png", "https://a.org/b.png", "ftp://a/b.png"])
def test_remote_addresses_are_refused(url):
    with pytest.raises(InputError, match="remote address"):
        images.load_image(url, CONFIG)


@pytest.mark.parametrize(
    "url, message",
    [
        ("data:image/png;base64,@@@", "not valid base64"),
        ("data:text/html;base64,aGk=", "not of the form"),
        ("data:image/png;base64", "not of the form"),
        ("data:image/png;base64,aGVsbG8=", "is not a picture"),
    ],
)
def test_bad_data_urls_are_refused(url, message):
    with pytest.raises(InputError, match=message):
        images.load_image(url, CONFIG)


def test_servers_read_no_files(tmp_path):
    path = tmp_path / "secret.png"
    path.write_bytes(png())
    for source in (path, str(path), path.as_uri()):
        with pytest.raises(InputError, match="path on this machine"):
            images.load_image(source, CONFIG, allow_paths=False)
    assert images.load_image(png(), CONFIG, allow_paths=False).size == (5, 3)


def test_messages_do_not_repeat_a_long_data_url():
    with pytest.raises(InputError) as error:
        images.load_image("data:image/png;base64," + "A" * 100_000, CONFIG)
    assert len(str(error.value)) < 300


def test_formats_that_run_programs_are_not_opened():
    """Pillow hands EPS files to Ghostscript."""
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 5\n%%EndComments\nshowpage\n%%EOF\n"
    assert Image.open(io.BytesIO(eps)).format == "EPS"
    with pytest.raises(InputError, match="not a picture"):
        images.load_image(eps, CONFIG)
