"""Pictures in, tiles out.

1. `load_image` reads a path, bytes, a data URL or a PIL picture into RGB; every way it can fail is one clear sentence.
2. `tile_image` resizes with Pillow's bicubic filter and cuts uint8 tiles, exactly as the release does.
3. `random_jpeg` degrades training tiles; `normalise` is the reference of what the model does with tiles.
"""

import base64
import binascii
import contextlib
import io
import pathlib
import re
import struct
import urllib.parse
import zlib
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from internvl_jax.data.media import tiling
from internvl_jax.errors import InputError
from internvl_jax.validation import first_line

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# Only formats that are plain pictures: Pillow also opens EPS (runs Ghostscript) and other containers.
_FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
# What Pillow's decoders raise on broken files, besides OSError (missing, truncated, not a picture).
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error)
_EXIF_ORIENTATION = 0x0112
_WHAT = {
    "image": "a picture; give a path, bytes, a data URL or a PIL picture",
    "video": "a video; give a path, bytes or a data URL",
}
_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://")

Source = str | pathlib.Path | bytes | Image.Image


def load_image(source: Source, config: tiling.ImageConfig, *, allow_paths: bool = True) -> Image.Image:
    """A picture as RGB.

    source: path, encoded bytes, `data:image/...;base64,...` or `file:///...` URL, or PIL picture. With
    allow_paths=False (servers) files of this machine are refused. Remote URLs always are.
    As released: `Image.convert("RGB")`, which drops alpha and clips 16-bit grey at 255 (it does not scale); EXIF
    orientation is ignored unless config.apply_exif. Of an animation, the first frame.
    Raises InputError for anything missing, broken, forbidden or larger than config.max_pixels or tiling.MAX_SIDE (known
    from the header, before decoding).
    """
    with _opened(source, config, allow_paths) as image:
        if config.apply_exif:
            image = ImageOps.exif_transpose(image)
        return image.convert("RGB")


def image_size(source: Source, config: tiling.ImageConfig, *, allow_paths: bool = True) -> tuple[int, int]:
    """(width, height) of the picture that `load_image` would give, from the header alone. Same errors."""
    with _opened(source, config, allow_paths) as image:
        width, height = image.size
        turned = config.apply_exif and image.getexif().get(_EXIF_ORIENTATION) in (5, 6, 7, 8)
        return (height, width) if turned else (width, height)


def tile_image(image: Image.Image, config: tiling.ImageConfig) -> np.ndarray:
    """uint8 tiles [G, H, W, 3] of an RGB picture: the grid row by row, then the thumbnail if there is more than one.

    Source: released `dynamic_preprocess`. The transform's own resize to S x S changes nothing on such tiles.
    """
    size = config.tile_size
    columns, rows = tiling.choose_grid(*image.size, config)
    resized_HWC = np.asarray(image.resize((size * columns, size * rows), Image.Resampling.BICUBIC))
    tiles_GHWC = resized_HWC.reshape(rows, size, columns, size, 3).swapaxes(1, 2).reshape(-1, size, size, 3)
    if config.thumbnail and len(tiles_GHWC) > 1:
        thumbnail_HWC = np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))
        tiles_GHWC = np.concatenate([tiles_GHWC, thumbnail_HWC[None]])
    return tiles_GHWC


def jpeg_roundtrip(tile_HWC: np.ndarray, quality: int) -> np.ndarray:
    """A uint8 RGB tile after being stored as JPEG at this quality (1..100)."""
    buffer = io.BytesIO()
    Image.fromarray(tile_HWC).save(buffer, format="JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def random_jpeg(tiles_GHWC: np.ndarray, rng: np.random.Generator, low: int = 75, high: int = 100) -> np.ndarray:
    """Tiles [G, H, W, 3], each stored as JPEG at its own quality, drawn evenly from low..high inclusive.

    Source: released training code (dataset.py), where it is on for data sets with `data_augment`.
    """
    degraded_GHWC = np.empty_like(tiles_GHWC)
    for i, quality in enumerate(rng.integers(low, high, size=len(tiles_GHWC), endpoint=True)):
        degraded_GHWC[i] = jpeg_roundtrip(tiles_GHWC[i], int(quality))
    return degraded_GHWC


def normalise(tiles_GHWC: np.ndarray) -> np.ndarray:
    """float32 tiles as the vision model sees them: (x / 255 - mean) / std. The model does this itself on the device."""
    mean = np.asarray(IMAGENET_MEAN, np.float32)
    std = np.asarray(IMAGENET_STD, np.float32)
    return (tiles_GHWC.astype(np.float32) / np.float32(255) - mean) / std


@contextlib.contextmanager
def _opened(source: Source, config: tiling.ImageConfig, allow_paths: bool) -> Iterator[Image.Image]:
    """The picture behind `source`, header read and size checked; errors while it is used name the source."""
    name = describe(source)
    with broken_files(name, config.max_pixels, _FORMATS):
        if isinstance(source, Image.Image):
            _check_pixels(source, name, config)
            yield source
        else:
            with Image.open(file_of(source, name, allow_paths), formats=_FORMATS) as image:
                _check_pixels(image, name, config)
                yield image


@contextlib.contextmanager
def broken_files(name: str, max_pixels: int, formats: Sequence[str]) -> Iterator[None]:
    """What Pillow raises while a file is read, as InputError in one sentence."""
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{name} does not exist; check the path and the image folder.") from None
    except UnidentifiedImageError:
        raise InputError(f"{name} is not a picture that can be read ({', '.join(formats)}).") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise InputError(f"{name} has more pixels than any allowed; the limit is {max_pixels}.") from None
    except _BROKEN as error:
        reason = (isinstance(error, OSError) and error.strerror) or first_line(error)
        raise InputError(f"{name} cannot be read, it may be truncated or broken ({reason}); replace it.") from error


def _check_pixels(image: Image.Image, name: str, config: tiling.ImageConfig) -> None:
    width, height = image.size
    if max(width, height) > tiling.MAX_SIDE:
        raise InputError(
            f"{name} is {width} x {height} pixels, longer than the limit of {tiling.MAX_SIDE}; cut it into parts first."
        )
    if width * height > config.max_pixels:
        raise InputError(
            f"{name} is {width} x {height} pixels, more than the limit of {config.max_pixels}; scale it down first."
        )


def file_of(
    source: Source, name: str, allow_paths: bool, kinds: tuple[str, ...] = ("image",)
) -> str | pathlib.Path | io.BytesIO:
    """What libraries open: a path, or a file in memory.

    Args:
      name: what errors call it.
      kinds: what data URLs may hold.
    """
    if isinstance(source, bytes):
        return io.BytesIO(source)
    if isinstance(source, str) and source.startswith("data:"):
        return io.BytesIO(_decode_data_url(source, name, kinds))
    if isinstance(source, str) and source.lower().startswith("file://"):
        source = _local_path(source, name)
    if isinstance(source, str) and _URL.match(source):
        raise InputError(f"{name} is a remote address; only data URLs, bytes and local files are read: fetch it first.")
    if not isinstance(source, str | pathlib.Path):
        raise InputError(f"{name} cannot be read as {_WHAT[kinds[0]]}.")
    if not allow_paths:
        raise InputError(f"{name} is a path on this machine, which is not allowed here; send a data URL instead.")
    return source


def _local_path(url: str, name: str) -> pathlib.Path:
    parts = urllib.parse.urlsplit(url)
    if parts.netloc not in ("", "localhost"):
        raise InputError(f"{name} is a file of the machine {parts.netloc!r}; fetch it first, and give file:///PATH.")
    return pathlib.Path(urllib.parse.unquote(parts.path))


def _decode_data_url(source: str, name: str, kinds: tuple[str, ...]) -> bytes:
    header, comma, payload = source.partition(",")
    known = header.startswith(tuple(f"data:{kind}/" for kind in kinds))
    if not comma or not known or not header.endswith(";base64"):
        raise InputError(f"{name} is not of the form data:{kinds[0]}/...;base64,....")
    try:
        return base64.b64decode("".join(payload.split()), validate=True)
    except binascii.Error as error:
        raise InputError(f"{name} is not valid base64 ({error}).") from None


def describe(source: Source, what: str = "image") -> str:
    """A short name of a source for messages; never the whole of a data URL. what: the word that it begins with."""
    if isinstance(source, bytes):
        return f"{what} of {len(source)} bytes"
    if isinstance(source, Image.Image):
        return f"PIL image of mode {source.mode}"
    if not isinstance(source, str | pathlib.Path):
        return f"{what} given as {type(source).__name__}"
    text = repr(str(source))[1:-1]  # a path may hold anything, line ends and half characters too
    return f"{what} {text if len(text) <= 200 and not text.startswith('data:') else text[:32] + '...'}"
