"""Converting a checkpoint of a published size beside copying the same bytes."""

import hashlib
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from checkpoint_convert import TABLES, language_model, open_directory, released_config, sink
from internvl_jax.errors import InputError
from internvl_jax.models import InternVL, InternVLConfig
from internvl_jax.sharding import abstract

_CHUNK = 1 << 25  # numbers


def compare(config: InternVLConfig, directory: str | None, rounds: int) -> dict[str, Any]:
    """Random bfloat16 weights -> orbax -> HF -> GitHub format, each by a process of its own, and a copy with sync.

    Args:
      directory: where some three times the checkpoint's size fits; None is the system's temporary one.

    Returns:
      by target format: seconds of the conversion and of the copy, their ratio (copy / ours), and the conversion's peak
      memory in GB; bytes of the checkpoint; whether it came back with the same checksum.

    Raises:
      InputError: a conversion failed.
    """
    with tempfile.TemporaryDirectory(dir=directory) as folder:
        root = pathlib.Path(folder)
        size = write_released(root / "source", config)
        wanted = checksum(root / "source")
        copies: list[float] = []
        runs: dict[str, list[dict[str, Any]]] = {"orbax": [], "hf": [], "github": []}
        for _ in range(rounds):
            copies.append(_seconds(lambda: _copy(root / "source", root / "copy")))
            shutil.rmtree(root / "copy")
            source = root / "source"
            for to, found in runs.items():
                found.append(_convert(source, root / to, to))
                if source != root / "source":
                    shutil.rmtree(source)
                source = root / to
            equal = checksum(source) == wanted
            shutil.rmtree(source)
    copy = statistics.median(copies)
    result: dict[str, Any] = {"bytes": size, "equal": equal}
    for to, found in runs.items():
        ours = statistics.median(run["wall_s"] for run in found)
        peak = max(run["peak_rss"] for run in found) / 1e9
        result[to] = {"ours_s": ours, "theirs_s": copy, "ratio": round(copy / ours, 3), "peak_gb": round(peak, 2)}
    return result


def write_released(directory: pathlib.Path, config: InternVLConfig) -> int:
    """A checkpoint of this size in GitHub format with random weights, without tokenizer; its bytes."""
    directory.mkdir()
    specs = abstract(lambda rngs: InternVL(config, rngs))[1]
    rows = TABLES["github", language_model(config.text)].rows_of(specs)
    tensors = {
        name: jax.ShapeDtypeStruct(row.source_shape(specs[row.target].shape), jnp.bfloat16)
        for row in rows
        for _, names in row.names(specs[row.target].shape)
        for name in names
    }
    numbers = np.random.default_rng(0).standard_normal(_CHUNK, np.float32).astype(jnp.bfloat16)
    with sink.SafetensorsWriter(directory, tensors) as writer:
        for i, (name, spec) in enumerate(tensors.items()):
            # The same numbers from another place on, so that no two tensors are equal.
            writer.write(name, 0, np.resize(np.roll(numbers, i), spec.shape))
    sink.write_json(directory / "config.json", released_config("github", config, None, "bfloat16", None))
    return sum(tensor.nbytes for tensor in open_directory(directory).values())


def checksum(directory: pathlib.Path) -> str:
    """Of every name, shape, type and byte."""
    digest = hashlib.sha256()
    for name, tensor in sorted(open_directory(directory).items()):
        digest.update(f"{name} {tensor.shape} {tensor.dtype.name}".encode())
        digest.update(np.ascontiguousarray(tensor.array()).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _convert(source: pathlib.Path, destination: pathlib.Path, to: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "launch.convert", f"--src={source}", f"--dst={destination}", f"--to={to}"]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = round(time.perf_counter() - start, 3)
    if done.returncode:
        raise InputError(f"converting to {to} failed: {done.stderr.strip().splitlines()[-1]}")
    return {**json.loads(done.stdout.splitlines()[-1]), "wall_s": seconds}


def _copy(source: pathlib.Path, destination: pathlib.Path) -> None:
    shutil.copytree(source, destination)
    for path in destination.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _seconds(do: Callable[[], None]) -> float:
    start = time.perf_counter()
    do()
    return round(time.perf_counter() - start, 3)
