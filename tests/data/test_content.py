"""Damaged, foreign and unfit files: what a start and `ultramem data verify` find, and what they say."""

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.data import content
from ultramem_megatron.data.build import build
from ultramem_megatron.data.dataset import open_training_data, open_validation_data
from ultramem_megatron.data.indexed import check_pair
from ultramem_megatron.data.info import describe
from ultramem_megatron.data.mcore import PairWriter
from ultramem_megatron.data.record import read_record, write_record
from ultramem_megatron.data.verify import verify
from ultramem_megatron.errors import DataError

MakeConfig = Callable[..., RunConfig]


def flip(path: Path, place: int) -> None:
    text = bytearray(path.read_bytes())
    text[place] ^= 1
    path.write_bytes(text)


def zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 2)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "zeroed .bin": lambda folder: zero(folder / "beta/train.bin"),
    "other .bin": lambda folder: (folder / "beta/train.bin").write_bytes(
        np.roll(np.fromfile(folder / "beta/train.bin", np.uint16), 1).tobytes()
    ),
    "cut .bin": lambda folder: cut(folder / "beta/train.bin"),
    "flipped length in .idx": lambda folder: flip(folder / "beta/train.idx", 34),
    "flipped place in .idx": lambda folder: flip(folder / "beta/train.idx", 34 + 4 * 295 + 8 * 7),
    "flipped border in .idx": lambda folder: flip(folder / "beta/train.idx", -16),
    "flipped end in .idx": lambda folder: flip(folder / "beta/train.idx", -8),
    "zeroed .idx": lambda folder: zero(folder / "beta/train.idx"),
    "files of another source": lambda folder: [
        shutil.copy(folder / f"alpha/train.{suffix}", folder / f"beta/train.{suffix}") for suffix in ("bin", "idx")
    ],
    "two lengths exchanged": lambda folder: exchange_two_lengths(folder / "beta/train"),
    "another tokenizer": lambda folder: rotate(folder / "tokenizer.json"),
}


def exchange_two_lengths(stem: Path) -> None:
    """An index in itself as it should be, of the same size."""
    info = check_pair(stem)
    lengths = np.fromfile(info.index, np.int32, info.documents, offset=34)
    other = next(i for i in range(info.documents) if lengths[i] != lengths[0])
    lengths[[0, other]] = lengths[[other, 0]]
    writer = PairWriter(stem.with_name("other"), np.uint16)
    tokens, start = np.fromfile(info.binary, np.uint16), 0
    for length in lengths.tolist():
        writer.add_document(tokens[start : start + length], [length])
        start += length
    writer.finish()
    for suffix in (".bin", ".idx"):
        stem.with_name("other").with_suffix(suffix).replace(stem.with_suffix(suffix))


def rotate(path: Path) -> None:
    """Other numbers for the same entries."""
    settings = json.loads(path.read_text())
    vocabulary = settings["model"]["vocab"]
    names, numbers = list(vocabulary)[1:], list(vocabulary.values())[1:]
    vocabulary.update(zip(names, numbers[1:] + numbers[:1], strict=True))
    path.write_text(json.dumps(settings))


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damage_is_refused_by_a_start_and_by_verify(
    data_folder: Path, make_config: MakeConfig, damage: Callable[[Path], object]
) -> None:
    damage(data_folder)
    with pytest.raises(DataError, match=r"beta|tokenizer.json") as refused:
        open_training_data(make_config(data_folder))
    assert str(data_folder) in str(refused.value)
    with pytest.raises(DataError, match=r"is damaged: .*(beta/train|tokenizer.json)"):
        verify(data_folder)


@pytest.mark.parametrize("damage", [name for name in DAMAGE if "tokenizer" not in name])
def test_info_names_damage_and_a_build_mends_it(data_folder: Path, damage: str) -> None:
    before = verify(data_folder)
    DAMAGE[damage](data_folder)
    with pytest.raises(DataError, match=r"beta/train"):
        describe(data_folder)
    build(data_folder.parent / "raw", data_folder, workers=1)
    assert verify(data_folder) == before


def test_a_start_says_what_it_did_not_compare_and_verify_finds_it(
    data_folder: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(data_folder)
    assert open_training_data(config).unread == ""  # so small that its spots are all of it
    monkeypatch.setattr(content, "_SPOT_BYTES", 16)
    monkeypatch.setattr(content, "SPOTTED_BYTES", 16 * content._SPOTS)
    monkeypatch.setattr("ultramem_megatron.data.folder.SPOTTED_BYTES", 16 * content._SPOTS)
    (data_folder / "dataset.json").unlink()
    build(data_folder.parent / "raw", data_folder, workers=1)
    flip(data_folder / "beta/train.bin", 100)  # between two spots
    said = open_training_data(config).unread
    assert f"were not compared with their hashes, which `ultramem data verify {data_folder}` does" in said
    assert sum(one["train"].unread_bytes for one in describe(data_folder).sources.values()) > 0
    with pytest.raises(DataError, match=r"beta/train.bin has sha256 [0-9a-f]{64}, recorded is [0-9a-f]{64}"):
        verify(data_folder)


def test_verify_counts_what_it_compared(data_folder: Path) -> None:
    verified = verify(data_folder)
    assert verified.unrecorded == ()
    assert verified.files == 1 + len(list(data_folder.glob("*/*.bin"))) + len(list(data_folder.glob("*/*.idx")))
    (data_folder / "beta/test.bin").unlink()
    with pytest.raises(DataError, match=r"beta/test.bin does not exist"):
        verify(data_folder)


def test_a_wrong_record_is_found(data_folder: Path) -> None:
    record = read_record(data_folder)
    beta = record.sources["beta"]
    split = dataclasses.replace(beta.splits["train"], largest_token=7)
    wrong = dataclasses.replace(beta, splits={**beta.splits, "train": split})
    write_record(data_folder, dataclasses.replace(record, sources={**record.sources, "beta": wrong}))
    with pytest.raises(DataError, match=r"beta/train.bin has the token 299, recorded is 7"):
        verify(data_folder)


def foreign(folder: Path, tokens: list[int], dtype: type[np.generic] = np.int32) -> Path:
    """A source that nobody recorded, of these tokens over and over."""
    (folder / "foreign").mkdir(exist_ok=True)
    for split in ("train", "validation"):
        writer = PairWriter(folder / "foreign" / split, dtype)
        for _ in range(40):
            writer.add_document(np.array(tokens), [len(tokens)])
        writer.finish()
    return folder / "foreign"


@pytest.mark.parametrize(
    ("token", "message"),
    [
        (300, r"foreign/train.bin holds the token 300, and model.vocab_size = 300 ends at token 299; .*vocab_size=301"),
        (-1, r"foreign/train.bin holds the token -1; no token is negative"),
        (2**31 - 1, r"holds the token 2147483647"),
    ],
)
def test_tokens_that_the_model_has_not_are_refused(
    data_folder: Path, make_config: MakeConfig, token: int, message: str
) -> None:
    foreign(data_folder, [1, 2, token, 3])
    with pytest.raises(DataError, match=message):
        open_training_data(make_config(data_folder))
    with pytest.raises(DataError, match=message.replace("train", "validation")):
        open_validation_data(make_config(data_folder))


def test_tokens_of_a_recorded_source_are_compared_with_the_model(data_folder: Path, make_config: MakeConfig) -> None:
    assert {one.largest_token for one in read_record(data_folder).sources["beta"].splits.values()} <= set(range(300))
    record = read_record(data_folder)
    largest = record.sources["beta"].splits["train"].largest_token
    with pytest.raises(DataError, match=r"tokenizer.json has 300 entries, more than model.vocab_size = 299"):
        open_training_data(make_config(data_folder, model={"vocab_size": 299}))
    assert largest == np.fromfile(data_folder / "beta/train.bin", np.uint16).max()


def test_a_foreign_source_is_read_once_and_again_when_it_changes(
    data_folder: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = foreign(data_folder, [1, 2, 3, 4])
    config = make_config(data_folder, data={"sources": {"foreign": 1.0}})
    read: list[Path] = []
    scan = content.scan
    monkeypatch.setattr(content, "scan", lambda info: (read.append(info.binary), scan(info))[1])
    first = open_training_data(config).identity
    assert open_training_data(config).identity == first
    assert read == [source / "train.bin"]
    assert "foreign/train.bin" not in verify(data_folder).unrecorded
    foreign(data_folder, [1, 2, 5, 4])
    assert open_training_data(config).identity != first


def test_verify_remembers_foreign_files(data_folder: Path) -> None:
    source = foreign(data_folder, [1, 2, 3, 4])
    assert verify(data_folder).unrecorded == tuple(
        f"foreign/{split}{suffix}" for split in ("train", "validation") for suffix in (".bin", ".idx")
    )
    assert verify(data_folder).unrecorded == ()
    times = (source / "train.bin").stat()
    flip(source / "train.bin", 5)
    os.utime(source / "train.bin", ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(DataError, match=r"foreign/train.bin has sha256"):
        verify(data_folder)


def test_a_folder_of_an_earlier_version_serves_and_is_compared_with_the_hash_it_has(
    data_folder: Path, make_config: MakeConfig
) -> None:
    path = data_folder / "dataset.json"
    plain = json.loads(path.read_text())
    plain["format"] = 1
    for source in plain["sources"].values():
        del source["blank_lines"], source["replaced_surrogates"]
        for split in source["splits"].values():
            del split["index_sha256"], split["spots_sha256"], split["largest_token"]
    path.write_text(json.dumps(plain))
    before = open_training_data(make_config(data_folder)).identity
    verify(data_folder)
    build(data_folder.parent / "raw", data_folder, workers=1)
    assert open_training_data(make_config(data_folder)).identity == before
    path.write_text(json.dumps(plain))
    flip(data_folder / "beta/train.bin", 9)
    with pytest.raises(DataError, match=r"beta/train.bin is not the file that .*: sha256"):
        open_training_data(make_config(data_folder))
    path.write_text(json.dumps({**plain, "format": 99}))
    with pytest.raises(DataError, match=r"dataset.json is of format 99, .* those up to 2"):
        open_training_data(make_config(data_folder))


def test_identity_names_contents_and_order(data_folder: Path, make_config: MakeConfig) -> None:
    first = open_training_data(make_config(data_folder)).identity
    assert open_training_data(make_config(data_folder)).identity == first
    other = open_training_data(make_config(data_folder, training={"seed": 9}, data={"sources": {"beta": 1.0}})).identity
    assert other.fingerprint != first.fingerprint
    assert other.content_differences(first) == ["the source alpha is only there"]
    assert other.order_differences(first)[0] == "training.seed = 1234 there and 9 here"
    synthetic = open_training_data(make_config(data_folder, data={"synthetic": True})).identity
    assert synthetic.content_differences(first) == ["a data folder there and generated tokens here"]
    rotate(data_folder / "tokenizer.json")
    build(data_folder.parent / "raw", data_folder, workers=1)
    rotated = open_training_data(make_config(data_folder)).identity.content_differences(first)
    assert [one.split(" has sha256 ")[0] for one in rotated] == ["tokenizer.json", "alpha/train.bin", "beta/train.bin"]
