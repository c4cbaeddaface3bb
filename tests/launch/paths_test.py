"""Where a launcher will write is looked at first."""

import errno
import os

import pytest

from internvl_jax.errors import InputError
from launch.paths import check_folder, check_new


def test_what_is_there_is_not_written_over(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "empty").mkdir()
    for taken in (tmp_path, tmp_path / "file"):
        with pytest.raises(InputError, match=f"{taken} already exists; remove it or give another --dst"):
            check_new(str(taken), "dst")
    check_new(str(tmp_path / "empty"), "dst")
    check_new(str(tmp_path / "new" / "deeper"), "dst")


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match=f"--out: nothing can be written into {tmp_path}/file .Not a directory"):
        check_folder(str(tmp_path / "file" / "new"), "out")


def test_what_takes_no_file_is_found_by_trying(tmp_path, monkeypatch):
    """Root may do anything, as `os.access` says; a disk that is read-only or /proc takes nothing from it either."""

    def refuse(*, dir):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(InputError, match=f"--dst: nothing can be written into {tmp_path} .Read-only file system"):
        check_new(str(tmp_path / "new" / "deeper"), "dst")
