"""Files and folders that are there under their names only when whole; folders that one process at a time writes.

A folder that is being written holds the file `MARK`. It says who writes; its lock ends with that process, however that
ends; and it tells a folder of this program from one of the user's, which is never touched.
"""

import contextlib
import datetime
import fcntl
import logging
import os
import pathlib
import shutil
import socket
import tempfile
import time
import uuid
from collections.abc import Iterator
from typing import TextIO

from internvl_jax import interrupts
from internvl_jax.errors import InputError

MARK = ".internvl_jax.lock"
_TRIES, _TRY_SECONDS = 20, 0.05
_LOG = logging.getLogger(__name__)


@contextlib.contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields a path beside `path` to write to; on leaving without an error the file there takes the name of `path`."""
    path = pathlib.Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")  # others may write this file, too
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())  # or a power cut leaves an empty file under the name
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(path: str | os.PathLike) -> None:
    """Raises InputError if no file or folder can be made under the path: folders that are missing above it will be
    made, and the one that is there must take a file. (What `os.access` says to root is not what a disk does.)
    """
    folder = pathlib.Path(path).absolute().parent
    while not folder.exists():
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"nothing can be written into {folder} ({error.strerror}); give another place") from None


@contextlib.contextmanager
def whole_folder(out: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields an empty folder beside `out` to write into; on leaving without an error it takes that name.

    Threads that write there must have ended by then, also after an error or an interrupt (`interrupts.held`). What a
    killed run left there is removed by the next one.

    Raises:
      InputError: see `PartialFolder`.
    """
    partial = PartialFolder(out)
    with contextlib.ExitStack() as failed:
        failed.callback(partial.discard)
        partial.clear()
        yield partial.path
        failed.pop_all()
    partial.publish()


@contextlib.contextmanager
def claimed(folder: pathlib.Path) -> Iterator[None]:
    """Makes the folder if there is none and keeps other writers out of it.

    Raises:
      InputError: somebody writes there; says who. Or nothing can be written there.
    """
    _make(folder)
    lock = _lock(folder / MARK, folder)
    try:
        yield
    finally:
        (folder / MARK).unlink(missing_ok=True)
        lock.close()


@contextlib.contextmanager
def reserved(path: str | os.PathLike) -> Iterator[None]:
    """Keeps other writers away from a file that is to be made; until then `.NAME.lock` stands beside it.

    Raises:
      InputError: somebody is making it; says who. Or nothing can be written there.
    """
    path = pathlib.Path(path)
    _make(path.parent)
    mark = path.with_name(f".{path.name}.lock")
    lock = _lock(mark, path)
    try:
        yield
    finally:
        mark.unlink(missing_ok=True)
        lock.close()


class PartialFolder:
    """The folder OUT.partial, claimed by this process, which is to become OUT.

    Args:
      out: the folder to make; it must not exist, unless empty. A link stands for what it leads to.
      known: another file by which OUT.partial is known as work of this program.

    Attributes:
      out: its real path.
      path: the path of the partial folder; it holds what an earlier process left.

    Raises:
      InputError: `out` is in use or can't be replaced, somebody else makes it (says who), or OUT.partial is the user's.
    """

    def __init__(self, out: str | os.PathLike, known: str = MARK):
        self.out = pathlib.Path(os.path.realpath(out))
        # What is no link after that is a circle of links.
        if self.out.is_symlink() or (self.out.exists() and not _is_empty_folder(self.out)):
            raise InputError(f"{out} already exists; remove it or give another name")
        if self.out.exists():
            _try_replacing(self.out)
        self.path = self.out.with_name(f"{self.out.name}.partial")
        if not self.path.is_symlink() and not self.path.exists():
            _make(self.path)
        if not any((self.path / name).exists() for name in (MARK, known)) and not _is_empty_folder(self.path):
            raise InputError(f"{self.path} is in the way and not of this program; move it away or give another name")
        self._lock = _lock(self.path / MARK, self.path)

    def clear(self) -> None:
        """Removes what an earlier process left."""
        for each in self.path.iterdir():
            if each.is_dir() and not each.is_symlink():
                shutil.rmtree(each)
            elif each.name != MARK:
                each.unlink()

    def publish(self) -> None:
        """Gives the folder its name and lets go of it.

        Raises:
          InputError: the name was taken meanwhile; the folder stays.
        """
        try:
            self.path.rename(self.out)
        except OSError as error:
            self.release()
            raise InputError(
                f"{self.path} is whole but can't be renamed to {self.out} ({error.strerror}); rename it yourself"
            ) from error
        (self.out / MARK).unlink()
        self.release()

    def discard(self) -> None:
        """Removes the folder and lets go of it."""
        with interrupts.held():  # pressed again, Ctrl-C would break off the removal
            for _ in range(_TRIES):  # where saving fails (a full disk), tensorstore may still be at its other files
                shutil.rmtree(self.path, ignore_errors=True)
                if not self.path.exists():
                    break
                time.sleep(_TRY_SECONDS)
            self.release()

    def release(self) -> None:
        """Lets go of the folder, for another process to go on with."""
        self._lock.close()


def _make(folder: pathlib.Path) -> None:
    """Makes a folder if it is not there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"the folder {folder} can't be made ({error.strerror}); give another place") from None


def _try_replacing(folder: pathlib.Path) -> None:
    """An empty folder under the final name is replaced in the end, which a mounted disk does not allow."""
    aside = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        folder.rename(aside)
        aside.rename(folder)
    except OSError as error:
        raise InputError(
            f"{folder} can't be replaced ({error.strerror}; it may be a mounted disk); give a folder in it"
        ) from error


def _is_empty_folder(path: pathlib.Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _lock(mark: pathlib.Path, what: pathlib.Path) -> TextIO:
    """A lock on the mark of `what`; closing the file, or the end of the process, ends it."""
    while True:
        try:
            file = mark.open("a+", encoding="utf-8", errors="replace")
        except OSError as error:  # a folder of somebody else, a disk that is read only
            raise InputError(f"{what} can't be written ({error.strerror}); give another place") from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with file:
                file.seek(0)
                holder = file.read(1000) or "another process"
            raise InputError(f"{what} is being written by {holder}; let that end or give another name") from None
        except OSError as error:
            _LOG.warning("%s can't be locked (%s): nothing keeps a second process from writing there", what, error)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), mark.stat()):
                break
        file.close()  # whoever held it has just removed it
    now = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
    try:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {now}")
        file.flush()
    except OSError as error:  # a full disk
        mark.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # closing tries to write again
            file.close()
        raise InputError(f"{what} can't be written ({error.strerror}); make room or give another place") from None
    return file
