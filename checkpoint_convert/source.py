"""A directory of safetensors files as a dict of lazily mapped tensors; a damaged or incomplete directory is refused."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping

import ml_dtypes
import numpy as np
from absl import logging
from safetensors import SafetensorError, safe_open

from internvl_jax.errors import InputError
from internvl_jax.sharding import checksum
from internvl_jax.validation import first_line, read_json

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
CHECKSUMS = "checksums.json"  # of weights that this project wrote
_MERGE = "merge_and_unload, save_pretrained"

# What released checkpoints of these families store: floating-point numbers, and the bytes of MXFP4.
_DTYPES = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "U8": np.dtype(np.uint8),
}
_RECORDED = {**_DTYPES, "I8": np.dtype(np.int8)}  # what recorded tensors may be besides
TYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor in a file; nothing is read until `array`."""

    file: pathlib.Path
    offset: int  # bytes from the start of the file
    shape: tuple[int, ...]
    dtype: np.dtype
    checksums: tuple[tuple[int, int, int], ...] = ()  # first byte, bytes and checksum of pieces that make the tensor

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def array(self) -> np.ndarray:
        """Maps the tensor read-only. Slices of it read only their own pages; dropping it gives them back, which
        is why the file isn't kept open: the mapping of a whole file would count as memory of this process.

        Raises:
          InputError: the file was removed or cut off since it was opened.
        """
        if self.nbytes == 0:  # an empty range can't be mapped
            return np.zeros(self.shape, self.dtype)
        try:
            return np.memmap(self.file, self.dtype, "r", self.offset, self.shape)
        except (OSError, ValueError) as error:
            raise InputError(f"{self.file} changed while it was read ({error}); copy or download it again") from error

    def check(self) -> None:
        """Reads all of the tensor, if it has checksums.

        Raises:
          InputError: one of them differs.
        """
        for start, size, noted in self.checksums:
            if checksum(Tensor(self.file, self.offset + start, (size,), np.dtype(np.uint8)).array()) != noted:
                raise InputError(
                    f"{self.file} is damaged from byte {self.offset + start} on ({CHECKSUMS} beside it has another "
                    f"checksum); copy it again, or remove {CHECKSUMS} if you changed it yourself"
                )


def open_directory(directory: str | pathlib.Path) -> dict[str, Tensor]:
    """Every tensor of a released checkpoint, by name: the files that an index names, or model.safetensors alone as
    transformers has it, or else all files. A PEFT adapter that lies beside them is not read; a warning says so.

    Raises:
      InputError: no such directory or no weights in it; a file that is damaged or truncated; an index that names a file
        that is not there or disagrees with its files.
    """
    directory = pathlib.Path(directory)
    if not directory.is_dir():
        raise InputError(f"{directory} is not a directory; give the folder of a released checkpoint")
    adapters = sorted(directory.glob("adapter_*"))
    if not (directory / INDEX).exists():
        files = sorted(set(directory.glob("*.safetensors")) - set(adapters))
        if not files:
            raise InputError(f"{directory} holds no .safetensors file{_only(adapters)}")
        _warn_of(adapters)
        if (directory / SINGLE) in files and len(files) > 1:
            unread = ", ".join(file.name for file in files if file.name != SINGLE)
            logging.warning("%s: only %s is read, as transformers does; not %s", directory, SINGLE, unread)
            files = [directory / SINGLE]
        return _with_checksums(directory, _merge(files))
    _warn_of(adapters)

    weight_map = read_json(directory / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise InputError(f"{directory / INDEX} has no weight_map; download it again")
    files = sorted({directory / name for name in weight_map.values()})
    if absent := [file.name for file in files if not file.is_file()]:
        raise InputError(f"{directory / INDEX} names files that are not there: {absent}; download them")
    tensors = _merge(files)
    wrong = sorted(
        name for name in tensors.keys() | weight_map.keys() if _file_name(tensors, name) != weight_map.get(name)
    )
    if wrong:
        raise InputError(f"{directory / INDEX} disagrees with its files about the tensors {wrong}; download them again")
    return _with_checksums(directory, tensors)


def open_file(file: pathlib.Path, dtypes: Mapping[str, np.dtype] = _DTYPES) -> dict[str, Tensor]:
    """Every tensor of one safetensors file.

    Args:
      dtypes: those that there may be, by their names in such files.

    Raises:
      InputError: it is not there, damaged or truncated.
    """
    if not file.is_file():
        raise InputError(f"{file} is not there; give the folder that it belongs to")
    return _tensors(file, dtypes)


def read_safetensors(file: pathlib.Path) -> dict[str, np.ndarray]:
    """Every tensor of one safetensors file, mapped; see `open_file`."""
    return {name: tensor.array() for name, tensor in open_file(file, _RECORDED).items()}


def _with_checksums(directory: pathlib.Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with what `SafetensorsWriter` noted of them, if it wrote them."""
    if not (directory / CHECKSUMS).exists():
        return tensors
    found = read_json(directory / CHECKSUMS)
    try:
        noted = {
            name: tuple((int(a), int(b), int(c, 16)) for a, b, c in found[name]) for name in found.keys() & tensors
        }
    except (TypeError, ValueError) as error:
        raise InputError(f"{directory / CHECKSUMS} is damaged ({error}); copy it again or remove it") from error
    return {name: dataclasses.replace(tensor, checksums=noted.get(name, ())) for name, tensor in tensors.items()}


def _only(adapters: list[pathlib.Path]) -> str:
    if adapters:
        return f" but a PEFT adapter ({adapters[0].name}); merge it into the model that it is of (in PEFT: {_MERGE})"
    return "; give the folder of a released checkpoint"


def _warn_of(adapters: list[pathlib.Path]) -> None:
    if adapters:
        logging.warning(
            "%s: a PEFT adapter lies beside the weights (%s) and is not read; if you want it, merge it into them first "
            "(in PEFT: %s), or else move it away",
            adapters[0].parent,
            ", ".join(file.name for file in adapters),
            _MERGE,
        )


def _file_name(tensors: dict[str, Tensor], name: str) -> str | None:
    return tensors[name].file.name if name in tensors else None


def _merge(files: list[pathlib.Path]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for file in files:
        found = _tensors(file)
        if twice := sorted(tensors.keys() & found.keys()):
            raise InputError(f"{file} repeats tensors of another file of its folder: {twice}; remove the stale file")
        tensors |= found
    return tensors


def _tensors(file: pathlib.Path, dtypes: Mapping[str, np.dtype] = _DTYPES) -> dict[str, Tensor]:
    try:
        # The library checks the header: sizes, offsets, types, and that the data end where the file does.
        with safe_open(file, framework="numpy"):
            pass
    except SafetensorError as error:
        raise InputError(f"{file} is damaged or truncated ({first_line(error)}); download it again") from error
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(size))  # as the library has checked it
    header.pop("__metadata__", None)
    if strange := sorted(name for name, entry in header.items() if entry["dtype"] not in dtypes):
        kinds = sorted({header[name]["dtype"] for name in strange})
        raise InputError(
            f"{file} stores tensors as {kinds}, e.g. {strange[0]}; use the checkpoint with floating-point weights"
        )
    return {
        name: Tensor(file, 8 + size + entry["data_offsets"][0], tuple(entry["shape"]), dtypes[entry["dtype"]])
        for name, entry in header.items()
    }
