"""Programs outlive their process, and a broken entry costs time, not the run."""

import random
import warnings

import jax
import jax.numpy as jnp
import numpy as np

from internvl_jax.compilation_cache import keep_programs
from tests.training import lives


def program(x):
    return jax.lax.scan(lambda carry, _: (jnp.tanh(carry @ x), carry.sum()), x, None, length=5)


def compiled(folder):
    """What the program gives, and the entries that the folder has then."""
    jax.clear_caches()
    found = [np.asarray(each) for each in jax.jit(program)(jnp.eye(8) / 2)]
    return found, sorted(path for path in folder.rglob("*") if path.is_file() and path.name.startswith("jit_program"))


def break_entries(folder):
    keep_programs(folder)
    expected, entries = compiled(folder)
    (entry,) = [path for path in entries if path.name.endswith("-cache")]
    whole, rng = entry.read_bytes(), random.Random(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compiled(folder)  # read again
    for _ in range(6):
        place = rng.randrange(len(whole))
        for broken in (whole[:place], whole[:place] + bytes(len(whole) - place)):
            entry.write_bytes(broken)
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                found, _ = compiled(folder)
            assert "Error reading persistent compilation cache entry for 'jit_program'" in str(said[0].message)
            for ours, theirs in zip(found, expected, strict=True):
                assert np.array_equal(ours, theirs)
            assert len(entry.read_bytes()) > len(whole) // 2 and entry.read_bytes() != broken  # mended
    assert compiled(folder)[1] == [entry]  # nothing half written lies about


def test_a_broken_entry_is_compiled_again(tmp_path):
    assert lives.apart(break_entries, tmp_path) == 0


def test_a_folder_that_takes_nothing_is_left_alone_with_a_warning(tmp_path, caplog):
    (tmp_path / "file").write_text("mine")
    before = jax.config.jax_compilation_cache_dir
    keep_programs(tmp_path / "file" / "cache")
    assert "compiled programs are not kept: nothing can be written into" in caplog.text
    assert jax.config.jax_compilation_cache_dir == before
