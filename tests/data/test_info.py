"""What `ultramem data info` reads of a folder."""

import os
from pathlib import Path

import pytest

from ultramem_megatron.data.info import describe
from ultramem_megatron.data.record import read_record
from ultramem_megatron.errors import DataError


def test_numbers_are_those_of_the_files(built_folder: Path) -> None:
    info = describe(built_folder)
    record = read_record(built_folder)
    assert list(info.sources) == ["alpha", "beta"]
    for name, splits in info.sources.items():
        for split, found in splits.items():
            known = record.sources[name].splits[split]
            assert (found.documents, found.tokens, found.bytes, found.sha256) == (
                known.documents,
                known.tokens,
                known.bytes,
                known.sha256,
            )
    assert info.train_tokens == sum(entry.splits["train"].tokens for entry in record.sources.values())
    assert info.vocab_size == 300


def test_a_folder_from_elsewhere_needs_no_record(data_folder: Path) -> None:
    (data_folder / "dataset.json").unlink()
    assert describe(data_folder).sources["alpha"]["train"].sha256 == ""


def test_damage_is_found(data_folder: Path, tmp_path: Path) -> None:
    os.truncate(data_folder / "beta/test.bin", 4)
    with pytest.raises(DataError, match=r"beta/test.bin has 4 bytes"):
        describe(data_folder)
    with pytest.raises(DataError, match=r"nowhere does not exist"):
        describe(tmp_path / "nowhere")
