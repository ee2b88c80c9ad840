"""Writing is atomic, the newest good checkpoint is found, and no kill leaves the store unusable."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from ultramem_megatron.checkpoint import store
from ultramem_megatron.checkpoint.manifest import Manifest
from ultramem_megatron.checkpoint.set_aside import is_set_aside, set_aside
from ultramem_megatron.errors import CheckpointError

Write = Callable[..., Path]


def steps(root: Path) -> list[int]:
    return [int(folder.name.removeprefix("step_")) for folder in store.checkpoint_folders(root)]


def test_nothing_is_visible_before_it_is_finished(
    tmp_path: Path, write_checkpoint: Write, make_manifest: Callable[..., Manifest]
) -> None:
    write_checkpoint(2)
    folder = store.begin(tmp_path, 4)
    (folder / "shard").write_bytes(b"half")
    assert steps(tmp_path) == [2]
    assert (tmp_path / "latest").read_text() == "step_00000002\n"
    target = store.finish(tmp_path, folder, make_manifest(4), keep=2)
    assert target == tmp_path / "step_00000004"
    assert not folder.exists()
    assert steps(tmp_path) == [4, 2]
    assert (tmp_path / "latest").read_text() == "step_00000004\n"


def test_the_newest_is_found(tmp_path: Path, write_checkpoint: Write) -> None:
    assert store.find_newest(tmp_path / "none") is None
    assert store.find_newest(tmp_path) is None
    for step in (2, 10, 9):
        write_checkpoint(step)
    found = store.find_newest(tmp_path)
    assert found is not None
    assert found[0] == tmp_path / "step_00000010"
    assert found[1].step == 10


def test_only_the_newest_are_kept(tmp_path: Path, write_checkpoint: Write) -> None:
    for step in (1, 2, 3, 4):
        write_checkpoint(step, keep=2)
    assert steps(tmp_path) == [4, 3]


def test_leftovers_of_a_killed_writer_are_removed(tmp_path: Path, write_checkpoint: Write) -> None:
    write_checkpoint(2)
    half = store.begin(tmp_path, 4)
    (half / "shard").write_bytes(b"half")
    (tmp_path / ".unfinished-latest").write_text("step_00000004\n")  # killed while it moved the pointer
    store.remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step_00000002"]


def test_two_writers_of_a_step_do_not_meet(tmp_path: Path, make_manifest: Callable[..., Manifest]) -> None:
    first, second = store.begin(tmp_path, 4), store.begin(tmp_path, 4)
    (first / "shard").write_bytes(b"first")
    (second / "shard").write_bytes(b"second one")
    store.finish(tmp_path, second, make_manifest(4), keep=2)
    assert store.finish(tmp_path, first, make_manifest(4), keep=2) == tmp_path / "step_00000004"
    found = store.find_newest(tmp_path)
    assert found is not None
    assert (found[0] / "shard").read_bytes() == b"first"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step_00000004"]


def test_a_writer_whose_folder_was_cleared_away_publishes_nothing(
    tmp_path: Path, make_manifest: Callable[..., Manifest]
) -> None:
    folder = store.begin(tmp_path, 4)
    (folder / "shard").write_bytes(b"half")
    store.remove_leftovers(tmp_path)
    with pytest.raises(OSError, match="unfinished-step_00000004"):
        store.finish(tmp_path, folder, make_manifest(4), keep=2)
    assert list(tmp_path.iterdir()) == []


def test_a_step_may_be_saved_again(tmp_path: Path, write_checkpoint: Write) -> None:
    (write_checkpoint(2) / "__0_0.distcp").unlink()
    with pytest.raises(CheckpointError):
        store.find_newest(tmp_path)
    write_checkpoint(2)
    assert store.find_newest(tmp_path) is not None


def test_a_damaged_one_is_named_and_the_previous_used(
    tmp_path: Path, write_checkpoint: Write, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (2, 4, 6):
        write_checkpoint(step)
    (tmp_path / "step_00000006" / "__1_0.distcp").unlink()
    (tmp_path / "step_00000004" / "manifest.json").unlink()
    with caplog.at_level(logging.WARNING):
        found = store.find_newest(tmp_path)
    assert found is not None
    assert found[1].step == 2
    assert len(caplog.messages) == 2
    assert f"{tmp_path}/step_00000006 is damaged: __1_0.distcp is missing" in caplog.messages[0]
    assert f"{tmp_path}/step_00000004 has no manifest.json" in caplog.messages[1]


def test_all_damaged_is_an_error(tmp_path: Path, write_checkpoint: Write) -> None:
    for step in (2, 4):
        (write_checkpoint(step) / "__0_0.distcp").unlink()
    with pytest.raises(CheckpointError, match=r"no checkpoint of .* is usable, the newest .*step_00000004 is damaged"):
        store.find_newest(tmp_path)


def test_one_that_is_set_aside_is_passed_over_and_kept(
    tmp_path: Path, write_checkpoint: Write, caplog: pytest.LogCaptureFixture
) -> None:
    write_checkpoint(2)
    write_checkpoint(6)
    set_aside(tmp_path / "step_00000006", "2 starts from it failed")
    with caplog.at_level(logging.WARNING):
        found = store.find_newest(tmp_path)
    assert found is not None
    assert (found[1].step, store.choose_folder(tmp_path)) == (2, tmp_path / "step_00000002")
    mark = tmp_path / "step_00000006" / "SET_ASIDE"
    assert caplog.messages == [
        f"checkpoint {mark.parent} is set aside: 2 starts from it failed; to use it all the same, remove {mark}"
    ]
    write_checkpoint(4, keep=2)
    assert steps(tmp_path) == [6, 4, 2], "it is no good one of those to be kept"
    mark.unlink()
    found = store.find_newest(tmp_path)
    assert found is not None
    assert found[1].step == 6
    set_aside(mark.parent, "again")
    write_checkpoint(6, keep=1)
    assert steps(tmp_path) == [6], "a new one of the same step takes its place"
    assert not is_set_aside(mark.parent)


def test_all_set_aside_is_an_error_that_names_the_way_out(tmp_path: Path, write_checkpoint: Write) -> None:
    set_aside(write_checkpoint(2), "")
    with pytest.raises(
        CheckpointError, match=r"set aside: its mark gives no reason; .* remove .*step_00000002/SET_ASIDE"
    ):
        store.find_newest(tmp_path)


@pytest.mark.parametrize("keep", [1, 2])
def test_a_damaged_newer_one_does_not_push_out_good_ones(tmp_path: Path, write_checkpoint: Write, keep: int) -> None:
    """The run went back to step 4, and saves at 5 before it reaches 6 again."""
    for step in (4, 6):
        write_checkpoint(step)
    (tmp_path / "step_00000006" / "manifest.json").unlink()
    write_checkpoint(5, keep=keep)
    found = store.find_newest(tmp_path)
    assert found is not None
    assert found[1].step == 5
    assert steps(tmp_path) == ([6, 5] if keep == 1 else [6, 5, 4])
    write_checkpoint(6, keep=keep)
    found = store.find_newest(tmp_path)
    assert found is not None
    assert found[1].step == 6
