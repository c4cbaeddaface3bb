"""Nothing half-written under a final name, one writer at a time, and what is the user's stays."""

import errno
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys

import pytest

from internvl_jax.errors import InputError
from internvl_jax.files import MARK, PartialFolder, claimed, reserved, whole_file, whole_folder


def names(folder: pathlib.Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


def write(out: pathlib.Path, text: str = "all") -> None:
    with whole_folder(out) as partial:
        (partial / "a").write_text(text)


def test_a_file_is_whole_or_as_it_was(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(RuntimeError), whole_file(path) as temporary:
        temporary.write_text("ne")
        raise RuntimeError
    assert path.read_text() == "old" and names(tmp_path) == ["a.json"]
    with whole_file(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new" and names(tmp_path) == ["a.json"]


def test_a_folder_is_whole_or_absent(tmp_path):
    with pytest.raises(RuntimeError), whole_folder(tmp_path / "out") as partial:
        (partial / "a").write_text("half")
        raise RuntimeError
    assert names(tmp_path) == []
    write(tmp_path / "new" / "out")
    assert names(tmp_path / "new") == ["out"] and names(tmp_path / "new" / "out") == ["a"]
    with pytest.raises(InputError, match="already exists"):
        write(tmp_path / "new" / "out", "other")
    assert (tmp_path / "new" / "out" / "a").read_text() == "all"


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match=r"can't be made .File exists"), claimed(tmp_path / "file"):
        pass
    with pytest.raises(InputError, match=r"can't be made .Not a directory"):
        PartialFolder(tmp_path / "file" / "out")


def test_ctrl_c_pressed_again_does_not_break_off_the_removal(tmp_path, monkeypatch, ctrl_c):
    press = lambda: os.kill(os.getpid(), signal.SIGINT)
    remove, presses = shutil.rmtree, []

    def slowly(path, **options):
        presses.append(press())
        remove(path, **options)

    monkeypatch.setattr(shutil, "rmtree", slowly)
    with pytest.raises(KeyboardInterrupt), whole_folder(tmp_path / "out") as partial:
        (partial / "a").write_text("half")
        press()
    assert names(tmp_path) == [] and presses
    with pytest.raises(KeyboardInterrupt):  # outside, each one counts again
        press()


HOLD = """
import pathlib, sys, time
from internvl_jax.files import claimed, reserved, whole_folder
kinds = {"folder": whole_folder, "workdir": claimed, "file": reserved}
with kinds[sys.argv[1]](pathlib.Path(sys.argv[2])) as partial:
    if partial:
        (partial / "left by a kill").mkdir()
        (partial / "b").write_text("half")
    print("holds", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("kind", [whole_folder, claimed, reserved])
def test_a_disk_without_room_is_told_before_anything_slow(tmp_path, kind):
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, usual[1]))
    try:
        told = r"out.* can't be written \(File too large\); make room"
        with pytest.raises(InputError, match=told), kind(tmp_path / "out"):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    with kind(tmp_path / "out"):
        pass


@pytest.mark.parametrize(("kind", "mark"), [(claimed, f"out/{MARK}"), (reserved, ".out.lock")])
def test_what_can_not_be_marked_is_told(tmp_path, kind, mark):
    (tmp_path / mark).mkdir(parents=True)  # root may write everywhere else
    with pytest.raises(InputError, match=r"out can't be written \(Is a directory\); give another place"):
        kind(tmp_path / "out").__enter__()


@pytest.mark.parametrize("kind", ["folder", "workdir", "file"])
def test_a_second_process_is_told_who_writes_until_that_is_killed(tmp_path, kind):
    out = tmp_path / "out"
    begin = {
        "folder": write,
        "workdir": lambda out: claimed(out).__enter__(),
        "file": lambda out: reserved(out).__enter__(),
    }
    with subprocess.Popen([sys.executable, "-c", HOLD, kind, str(out)], stdout=subprocess.PIPE) as first:
        assert first.stdout.readline() == b"holds\n"
        for _ in range(2):  # to have asked once changes nothing
            with pytest.raises(InputError, match=rf"is being written by process {first.pid} on .* since 20\d\d-"):
                begin[kind](out)
        first.send_signal(signal.SIGKILL)
    if kind == "folder":
        write(out)
        assert names(out) == ["a"]
    elif kind == "file":
        with reserved(out):
            assert names(tmp_path) == [".out.lock"]
        out.touch()
    else:
        with claimed(out):
            assert names(out) == [MARK]
        assert names(out) == []
    assert names(tmp_path) == ["out"]


def test_two_writers_of_one_process_are_kept_apart(tmp_path):
    with whole_folder(tmp_path / "out") as partial:
        (partial / "a").write_text("first")
        with pytest.raises(InputError, match=f"is being written by process {os.getpid()} "):
            write(tmp_path / "out")
    assert (tmp_path / "out" / "a").read_text() == "first"


def test_a_name_that_was_taken_meanwhile_is_kept_and_so_is_the_work(tmp_path):
    with pytest.raises(InputError, match=r"out.partial is whole but can't be renamed"), whole_folder(tmp_path / "out"):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "notes").touch()
    assert names(tmp_path) == ["out", "out.partial"] and names(tmp_path / "out") == ["notes"]


def test_what_is_the_users_stays(tmp_path):
    partial = tmp_path / "out.partial"
    partial.mkdir()
    (partial / "notes").write_text("mine")
    with pytest.raises(InputError, match=r"out.partial is in the way and not of this program; move it away"):
        write(tmp_path / "out")
    assert names(partial) == ["notes"]
    (tmp_path / "file.partial").write_text("mine")
    (tmp_path / "link.partial").symlink_to("nowhere")
    for name in ("file", "link"):
        with pytest.raises(InputError, match=f"{name}.partial is in the way"):
            write(tmp_path / name)
    assert (tmp_path / "file.partial").read_text() == "mine" and not (tmp_path / "nowhere").exists()


def test_what_a_killed_run_left_is_removed_but_not_what_links_lead_to(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").touch()
    earlier = PartialFolder(tmp_path / "out")
    (earlier.path / "link").symlink_to(tmp_path / "mine")
    (earlier.path / "folder").mkdir()
    (earlier.path / "file").touch()
    earlier.release()
    write(tmp_path / "out")
    assert names(tmp_path / "out") == ["a"] and names(tmp_path / "mine") == ["notes"]


def test_a_link_stands_for_what_it_leads_to(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "empty").mkdir()
    (tmp_path / "one").symlink_to("disk/empty")
    (tmp_path / "two").symlink_to("disk/absent")
    for name in ("one", "two"):
        with whole_folder(tmp_path / name) as partial:
            assert partial.parent == tmp_path / "disk"
            (partial / "a").touch()
        assert (tmp_path / name).is_symlink() and names(tmp_path / name) == ["a"]
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(InputError, match="already exists"):
        write(tmp_path / "circle")


def test_a_mounted_disk_is_found_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "disk").mkdir()
    rename = pathlib.Path.rename

    def busy(path, target):
        if path.name == "disk":
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        return rename(path, target)

    monkeypatch.setattr(pathlib.Path, "rename", busy)
    with pytest.raises(InputError, match=r"disk can't be replaced \(.*busy; it may be a mounted disk\)"):
        PartialFolder(tmp_path / "disk")
    assert names(tmp_path) == ["disk"]


def test_a_file_system_without_locks_is_written_with_a_warning(tmp_path, monkeypatch, caplog):
    def none(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", none)
    write(tmp_path / "out")
    assert names(tmp_path / "out") == ["a"]
    assert "out.partial can't be locked" in caplog.text


def test_no_other_code_splits_files_at_what_unicode_calls_a_line():
    """In the packages `splitlines` is for what programs say, never for files."""
    root = pathlib.Path(__file__).parent.parent
    programs = {"internvl_jax/planning/hlo.py", "internvl_jax/validation/words.py", "benchmarks/convert.py"}
    for folder in ("internvl_jax", "checkpoint_convert", "launch", "demo", "cascade", "benchmarks"):
        for file in (root / folder).rglob("*.py"):
            name = file.relative_to(root).as_posix()
            assert name in programs or ".splitlines(" not in file.read_text(), name
