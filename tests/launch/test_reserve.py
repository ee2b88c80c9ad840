"""A job can say why it ended when its disk is full. A limit on the size of files stands for a full disk."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ultramem_launch.ending import Outcome, read_ending
from ultramem_launch.slurm.batch import main
from ultramem_launch.slurm.folder import JobFolder
from ultramem_launch.slurm.reserve import RESERVE_BYTES, is_full, keep_reserve
from ultramem_megatron.files import write_text
from ultramem_megatron.testing.tiny import write_tiny_config


@contextmanager
def no_room(limit_bytes: int) -> Iterator[None]:
    """Files cannot grow beyond so much."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> JobFolder:
    """Of a job that is about to start."""
    monkeypatch.setenv("ULTRAMEM_ATTEMPT", "7.0")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "")
    found = JobFolder(tmp_path / "run")
    found.job.mkdir(parents=True)
    write_tiny_config(tmp_path).rename(found.config)
    return found


def begin(folder: JobFolder) -> int:
    places = ["--allocated", "2", "--tasks-per-node", "1", "--chain", "1"]
    return main(["begin", *places, "--run-dir", str(folder.run_dir)])


def test_room_is_kept_from_the_start_and_given_up_at_the_end(
    folder: JobFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("ultramem_launch.slurm.batch.find_lost_nodes", list)
    assert begin(folder) == 0
    assert folder.reserve.stat().st_size == RESERVE_BYTES
    how = ["--step-status", "143", "--asked", "none", "--trained", "yes", "--max-restarts", "3", "--requeue", "yes"]
    with no_room(10_000):
        assert main(["judge", *how, "--run-dir", str(folder.run_dir)]) == 82
    ending = read_ending(folder.run_dir)
    assert ending is not None
    assert ending.outcome is Outcome.OUT_OF_DISK
    assert folder.read_attempts()[0]["outcome"] == "out_of_disk"
    assert "out_of_disk: no room is left in the run folder" in capsys.readouterr().out
    assert not folder.reserve.exists()


def test_a_start_without_room_is_refused_in_words(folder: JobFolder, capsys: pytest.CaptureFixture[str]) -> None:
    with no_room(10_000):
        assert begin(folder) == 82
    assert f"out_of_disk: no room is left in {folder.run_dir}" in capsys.readouterr().err
    assert sorted(file.name for file in folder.job.iterdir()) == ["config.yaml"], "nothing is half-written"


def test_whether_a_disk_is_full_is_tried(tmp_path: Path) -> None:
    assert not is_full(tmp_path)
    with no_room(10_000):
        assert is_full(tmp_path)
        with pytest.raises(OSError, match="too large"):
            write_text(tmp_path / "text", "x" * 20_000)
    assert list(tmp_path.iterdir()) == []
    keep_reserve(tmp_path / "reserve")
    before = (tmp_path / "reserve").stat().st_ino, (tmp_path / "reserve").read_bytes()
    keep_reserve(tmp_path / "reserve")
    assert ((tmp_path / "reserve").stat().st_ino, (tmp_path / "reserve").read_bytes()) == before
