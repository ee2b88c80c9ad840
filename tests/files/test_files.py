"""Files that appear whole or not at all, and places where they cannot."""

import errno
import os
import signal
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from ultramem_megatron import file_parts
from ultramem_megatron.errors import FileError, UltraMemError
from ultramem_megatron.file_failures import named_failure
from ultramem_megatron.files import (
    check_can_write,
    create_text,
    failures_named,
    remove_leftovers,
    replace_text,
    temporary_folder,
    write_text,
    written_whole,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("write", [write_text, replace_text])
def test_a_file_is_replaced_as_a_whole(tmp_path: Path, write: Callable[[Path, str], None]) -> None:
    path = tmp_path / "made" / "a.json"
    write(path, "one\n")
    with path.open() as before:
        write(path, "two\n")
        assert before.read() == "one\n"
    assert path.read_text() == "two\n"
    assert names(path.parent) == ["a.json"]


def test_nothing_is_left_of_a_block_that_fails(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), written_whole(path) as stream:
        stream.write(b"new")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a.bin"]


def test_links_planted_under_every_guessable_name_are_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    folder = tmp_path / "shared"
    folder.mkdir()
    for name in (f".a.json.{os.getpid()}.part", ".a.json.part", ".a.json.partial", "a.json.tmp"):
        (folder / name).symlink_to(victim)
    write_text(folder / "a.json", "x")
    (folder / "b.json").symlink_to(victim)
    write_text(folder / "b.json", "x")
    assert victim.read_text() == "mine"
    assert not (folder / "b.json").is_symlink()


def test_a_name_that_is_taken_is_never_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    monkeypatch.setattr(file_parts.secrets, "token_hex", lambda size: "0" * 2 * size)
    (tmp_path / f".a.{'0' * 16}.part").symlink_to(victim)
    with pytest.raises(FileError, match=r"/a cannot be written: File exists"), written_whole(tmp_path / "a") as stream:
        stream.write(b"x")
    assert victim.read_text() == "mine"


def test_names_cannot_be_guessed_and_differ(tmp_path: Path) -> None:
    seen = set()
    for _ in range(50):
        with written_whole(tmp_path / "a"):
            seen |= set(names(tmp_path)) - {"a"}
    assert len(seen) == 50


def test_the_first_of_several_creates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no second names here")

    create_text(tmp_path / "a", "first")
    with pytest.raises(FileExistsError):
        create_text(tmp_path / "a", "second")
    monkeypatch.setattr(os, "link", refuse)
    create_text(tmp_path / "b", "first")
    with pytest.raises(FileExistsError):
        create_text(tmp_path / "b", "second")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "first", "b": "first"}


def killed_while_writing(folder: Path) -> None:
    """A file and a folder, unfinished, of a process that SIGKILL has ended."""
    pid = os.fork()
    if pid == 0:
        with written_whole(folder / "a"), temporary_folder(folder, "unpacked") as inner:
            (inner / "x").write_text("x")
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def test_what_a_killed_writer_left_goes_and_what_is_being_written_stays(tmp_path: Path) -> None:
    killed_while_writing(tmp_path)
    assert len(names(tmp_path)) == 2
    (tmp_path / "a.part").write_text("of the user")
    (tmp_path / ".a.0123.part").write_text("of the user")
    mine = ["a.part", ".a.0123.part"]
    with written_whole(tmp_path / "a") as stream, temporary_folder(tmp_path, "unpacked") as inner:
        remove_leftovers(tmp_path)
        stream.write(b"whole")
        assert inner.is_dir()
        assert len(names(tmp_path)) == 2 + len(mine)
    assert names(tmp_path) == sorted([*mine, "a"])
    assert (tmp_path / "a").read_text() == "whole"


def test_the_next_writer_of_a_file_removes_its_leftovers_alone(tmp_path: Path) -> None:
    killed_while_writing(tmp_path)
    write_text(tmp_path / "a", "x")
    assert [name.partition(".")[2].partition(".")[0] for name in names(tmp_path) if name != "a"] == ["unpacked"]


def test_without_locks_only_what_is_old_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed_while_writing(tmp_path)

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks here")

    monkeypatch.setattr(file_parts.fcntl, "flock", refuse)
    left = list(tmp_path.iterdir())
    remove_leftovers(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(left)
    for path in left:
        os.utime(path, (0, 0))
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_temporary_folder_is_for_its_owner_and_goes(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), temporary_folder(tmp_path / "new", "work") as folder:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        (folder / "x").mkdir()
        raise RuntimeError
    assert names(tmp_path / "new") == []


def test_a_temporary_folder_may_take_its_place(tmp_path: Path) -> None:
    with temporary_folder(tmp_path, "work") as folder:
        folder.rename(tmp_path / "work")
    assert names(tmp_path) == ["work"]


def a_file(path: Path) -> Path:
    path.write_text("x")
    return path


PLACES = [
    pytest.param(
        lambda root: a_file(root / "f") / "a", r"f/a cannot be written: .* \(.*/f\)|Not a directory", id="below-file"
    ),
    pytest.param(lambda root: root, r"cannot be written: Is a directory; it is a folder; name a file", id="folder"),
    pytest.param(lambda root: root / ("n" * 250), r"File name too long; choose a shorter name", id="name-too-long"),
    pytest.param(
        lambda root: Path("/proc/nothing/a"), r"/proc/nothing/a cannot be written: .*; .*", id="no-folder-there"
    ),
    pytest.param(
        lambda root: Path("/dev/full"), r"/dev/full cannot be written: No space left on device; make", id="full"
    ),
    pytest.param(lambda root: root / "a\nb\x1b[2J" / ("n" * 250), r"a\\nb\\x1b\[2J/n", id="control-characters"),
]


@pytest.mark.parametrize(("place", "words"), PLACES)
def test_a_place_that_cannot_be_written(tmp_path: Path, place: Callable[[Path], Path], words: str) -> None:
    path = place(tmp_path)
    for write in (write_text, replace_text):
        with pytest.raises(FileError, match=words) as refused:
            write(path, "x")
        assert "\n" not in str(refused.value)
        assert len(str(refused.value)) < 1000
    if path != Path("/dev/full"):
        with pytest.raises(FileError, match=words):
            check_can_write(path)


def test_trying_leaves_nothing(tmp_path: Path) -> None:
    check_can_write(tmp_path / "new" / "a")
    assert names(tmp_path / "new") == []
    check_can_write(Path("/dev/null"))


def test_a_device_is_written_to_and_stays_one() -> None:
    write_text(Path("/dev/null"), "x")
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)


def test_failures_keep_their_kind() -> None:
    with (
        pytest.raises(
            FileError, match=r"^here cannot be read: Permission denied \(/there\); get the rights"
        ) as refused,
        failures_named(Path("here"), "read"),
    ):
        raise PermissionError(errno.EACCES, "Permission denied", "/there")
    assert isinstance(refused.value, UltraMemError)
    assert isinstance(refused.value, OSError)
    assert not refused.value.may_pass
    assert named_failure(OSError(errno.ESTALE, "Stale file handle", "/nfs/x")).may_pass
