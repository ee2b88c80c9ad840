"""Builds that are killed, and places that cannot be written: one paragraph, nothing left, nobody left."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ultramem_megatron.data.build import build
from ultramem_megatron.data.fetch import fetch
from ultramem_megatron.data.mcore import PairWriter
from ultramem_megatron.data.sources import sources_named
from ultramem_megatron.data.tokenizer import make_tokenizer
from ultramem_megatron.data.verify import verify
from ultramem_megatron.errors import FileError


@pytest.fixture
def raw(data_folder: Path) -> Path:
    return data_folder.parent / "raw"


@pytest.mark.parametrize(
    "write",
    [
        pytest.param(lambda raw, out: fetch(sources_named("shakespeare"), out), id="fetch"),
        pytest.param(lambda raw, out: make_tokenizer(raw, out, 300), id="tokenizer"),
    ],
)
@pytest.mark.parametrize("place", ["a file/below", "/sys/nowhere"])
def test_a_place_that_cannot_be_written_is_named_before_any_work(
    raw: Path, tmp_path: Path, write: Callable[[Path, Path], object], place: str
) -> None:
    (tmp_path / "a file").write_text("mine")
    out = tmp_path / place
    with pytest.raises(FileError, match=rf"^{out}.* cannot be written: .*; .*name another place"):
        write(raw, out)
    assert (tmp_path / "a file").read_text() == "mine"


def test_a_disk_that_fills_up_leaves_the_old_files(
    raw: Path, data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = verify(data_folder)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(PairWriter, "add_document", full)
    with pytest.raises(FileError, match=r"alpha cannot be written: No space left on device; make room"):
        build(raw, data_folder, workers=1, seed=9)
    assert verify(data_folder) == before
    assert not list(data_folder.glob(".*"))


def test_a_planted_link_is_not_followed(raw: Path, data_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "victim").mkdir()
    for name in (f".alpha.{os.getpid()}.part", ".dataset.json.part", f".dataset.json.{os.getpid()}.part"):
        (data_folder / name).symlink_to(tmp_path / "victim")
    build(raw, data_folder, workers=1, seed=4)
    assert not list((tmp_path / "victim").iterdir())


def children(parent: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(parent)], capture_output=True, text=True).stdout
    return [int(line) for line in found.split()]


def wait_until(holds: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_build_leaves_no_process_and_the_next_removes_its_files(
    raw: Path, data_folder: Path, number: signal.Signals
) -> None:
    line = {"text": "oak birch cedar " * 300}
    long = raw.parent / "long"
    long.mkdir()
    with (long / "beta.jsonl").open("w") as stream:
        stream.writelines(json.dumps({"id": str(n), **line}) + "\n" for n in range(20_000))
    command = [
        "-m",
        "ultramem_launch",
        "data",
        "build",
        "--raw",
        str(long),
        "--out",
        str(data_folder),
        "--workers",
        "2",
    ]
    process = subprocess.Popen([sys.executable, *command], stderr=subprocess.DEVNULL)
    wait_until(lambda: len(children(process.pid)) == 3 and any(data_folder.glob(".beta.*/beta/*.bin")), 240)
    helpers = children(process.pid)  # two workers, and Python's tracker of their semaphores
    process.send_signal(number)
    process.wait(120)
    wait_until(lambda: not any(is_running(pid) for pid in helpers), 60)
    if number == signal.SIGTERM:
        assert process.returncode == 143
        assert not list(data_folder.glob(".*"))
    verify(data_folder)
    build(raw, data_folder, workers=1)
    assert not list(data_folder.glob(".*"))
