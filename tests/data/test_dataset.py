"""Training samples: the order hangs on files, seed, length and weights; bad folders are refused in words."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.data import index_cache
from ultramem_megatron.data.build import build
from ultramem_megatron.data.dataset import TokenSource, open_training_data, open_validation_data
from ultramem_megatron.data.indexed import check_pair
from ultramem_megatron.data.indexed_source import IndexedSource
from ultramem_megatron.data.mcore import open_documents
from ultramem_megatron.data.tokenizer import make_tokenizer, open_tokenizer
from ultramem_megatron.errors import DataError
from ultramem_megatron.testing.distributed import run_distributed

SEQ_LENGTH = 32
MakeConfig = Callable[..., RunConfig]


def samples(source: TokenSource, count: int, start: int = 0) -> torch.Tensor:
    return torch.stack([source[i]["tokens"] for i in range(start, start + count)])


def one_source(folder: Path, seed: int = 0, split: str = "train") -> IndexedSource:
    info = check_pair(folder / "beta" / split)
    return IndexedSource(info, seq_length=SEQ_LENGTH, seed=seed, vocab_size=300, eod=open_tokenizer(folder).eod)


def test_a_sample_is_tokens_and_their_successors(data_folder: Path, make_config: MakeConfig) -> None:
    sample = open_training_data(make_config(data_folder))[5]
    assert sorted(sample) == ["labels", "tokens"]
    assert sample["tokens"].shape == sample["labels"].shape == (SEQ_LENGTH,)
    assert sample["tokens"].dtype == sample["labels"].dtype == torch.int64
    assert torch.equal(sample["tokens"][1:], sample["labels"][:-1])


def test_an_epoch_holds_every_token_once(data_folder: Path) -> None:
    source = one_source(data_folder)
    read = torch.bincount(samples(source, source.samples_per_epoch).flatten(), minlength=300)
    documents = open_documents(data_folder / "beta/train")
    all_tokens = torch.cat([torch.from_numpy(documents[i].astype("int64")) for i in range(len(documents))])
    missing = torch.bincount(all_tokens, minlength=300) - read
    assert missing.min() >= 0
    assert missing.sum() == len(all_tokens) - source.samples_per_epoch * SEQ_LENGTH  # the rest of an epoch
    assert missing.sum() <= SEQ_LENGTH


def test_epochs_have_orders_of_their_own_and_begin_where_the_last_ended(data_folder: Path) -> None:
    source = one_source(data_folder)
    size = source.samples_per_epoch
    epochs = [samples(source, size, start=epoch * size) for epoch in range(3)]
    assert not torch.equal(epochs[0], epochs[1])
    assert not torch.equal(epochs[1], epochs[2])
    # read in any other order, and by another process: the same
    again = one_source(data_folder)
    assert torch.equal(again[2 * size]["tokens"], epochs[2][0])
    assert torch.equal(again[size - 1]["tokens"], epochs[0][-1])
    assert torch.equal(samples(again, size, start=size), epochs[1])


def test_order_depends_on_the_seed_not_on_steps_or_batches(data_folder: Path, make_config: MakeConfig) -> None:
    first = samples(open_training_data(make_config(data_folder)), 600)
    longer = {"steps": 99_999, "global_batch_size": 64, "micro_batch_size": 2}
    assert torch.equal(first, samples(open_training_data(make_config(data_folder, training=longer)), 600))
    reseeded = open_training_data(make_config(data_folder, training={"seed": 2}))
    assert not torch.equal(first, samples(reseeded, 600))


def test_order_of_sources_in_the_config_does_not_matter(data_folder: Path, make_config: MakeConfig) -> None:
    one = open_training_data(make_config(data_folder, data={"sources": {"alpha": 1.0, "beta": 3.0}}))
    other = open_training_data(make_config(data_folder, data={"sources": {"beta": 6.0, "alpha": 2.0}}))
    assert torch.equal(samples(one, 50), samples(other, 50))
    assert one.fingerprint == other.fingerprint


def share_of_alpha(folder: Path, source: TokenSource, count: int) -> float:
    alpha = open_documents(folder / "alpha/train")
    texts = b"".join(alpha[i].tobytes() for i in range(len(alpha)))
    # a sample of one document is found in the text as it is
    inside = [s for s in samples(source, count).numpy() if open_tokenizer(folder).eod not in s]
    return sum(s.astype("uint16").tobytes() in texts for s in inside) / len(inside)


def test_weights_are_shares_of_the_samples(data_folder: Path, make_config: MakeConfig) -> None:
    config = make_config(data_folder, data={"sources": {"alpha": 1.0, "beta": 4.0}})
    assert share_of_alpha(data_folder, open_training_data(config), 1000) == pytest.approx(0.2, abs=0.03)
    by_tokens = open_training_data(make_config(data_folder))
    assert share_of_alpha(data_folder, by_tokens, 1000) == pytest.approx(2 / 3, abs=0.04)


def test_one_source_may_be_chosen(data_folder: Path, make_config: MakeConfig) -> None:
    config = make_config(data_folder, data={"sources": {"beta": 5.0}})
    expected = one_source(data_folder, seed=config.training.seed)
    assert torch.equal(samples(open_training_data(config), 30), samples(expected, 30))
    assert list(open_validation_data(config)) == ["beta"]


def test_validation_is_the_same_for_every_seed(data_folder: Path, make_config: MakeConfig) -> None:
    first = open_validation_data(make_config(data_folder))
    second = open_validation_data(make_config(data_folder, training={"seed": 77}))
    assert list(first) == ["alpha", "beta"]
    for name in first:
        assert torch.equal(samples(first[name], 100), samples(second[name], 100))  # more than an epoch
    held_out = open_documents(data_folder / "alpha/validation")
    tokens = {token for i in range(len(held_out)) for token in held_out[i].tolist()}
    assert set(samples(first["alpha"], 20).flatten().tolist()) <= tokens


def test_sources_without_held_out_text_are_not_validated_on(data_folder: Path, make_config: MakeConfig) -> None:
    (data_folder / "alpha/validation.bin").unlink()
    (data_folder / "alpha/validation.idx").unlink()
    assert list(open_validation_data(make_config(data_folder))) == ["beta"]
    shutil.rmtree(data_folder / "beta")
    with pytest.raises(DataError, match=r"no source of .* held-out text .* training.eval_interval=0"):
        open_validation_data(make_config(data_folder))


def test_a_stored_index_is_used_and_a_new_corpus_gets_a_new_one(
    data_folder: Path, make_config: MakeConfig, write_corpus: Callable[..., Path]
) -> None:
    config = make_config(data_folder, data={"sources": {"beta": 1.0}})
    first = samples(open_training_data(config), 20)
    (stored,) = data_folder.glob("index_cache/beta/train-*/epoch-00000")
    written = stored.stat().st_mtime_ns
    assert torch.equal(first, samples(open_training_data(config), 20))
    assert stored.stat().st_mtime_ns == written

    write_corpus(data_folder.parent / "raw", "beta", 250, seed=3)
    build(data_folder.parent / "raw", data_folder, workers=1)
    assert not stored.exists()
    second = samples(open_training_data(config), 20)
    shutil.rmtree(data_folder / "index_cache")
    assert torch.equal(second, samples(open_training_data(config), 20))


def test_a_corpus_copied_over_the_old_one_gets_an_index_of_its_own(data_folder: Path, make_config: MakeConfig) -> None:
    config = make_config(data_folder, data={"sources": {"beta": 1.0}})
    before = open_training_data(config)
    (data_folder / "dataset.json").unlink()  # else the files are not those that it speaks of
    for suffix in ("bin", "idx"):  # other files under the same name, the stored index left lying
        shutil.copy(data_folder / f"alpha/train.{suffix}", data_folder / f"beta/train.{suffix}")
    after = open_training_data(config)
    assert after.fingerprint != before.fingerprint
    alpha = open_training_data(make_config(data_folder, data={"sources": {"alpha": 1.0}}))
    assert torch.equal(samples(after, 50), samples(alpha, 50))


def test_a_small_source_keeps_one_epoch_on_the_disk_however_many_are_read(data_folder: Path) -> None:
    source = one_source(data_folder)
    source.build_first_epoch()
    samples(source, source.samples_per_epoch * 6, start=0)
    assert [path.name for path in (data_folder / "index_cache/beta").glob("*/*")] == ["epoch-00000"]


def test_a_large_source_keeps_its_first_and_its_newest_two_epochs(
    data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_cache, "_LARGE", 1)
    source = one_source(data_folder)
    for epoch in range(6):
        samples(source, 1, start=epoch * source.samples_per_epoch)
    stored = sorted(path.name for path in (data_folder / "index_cache/beta").glob("*/*"))
    assert stored == ["epoch-00000", "epoch-00004", "epoch-00005"]


@pytest.mark.parametrize("name", ["document_index", "sample_index", "shuffle_index"])
def test_a_flipped_bit_of_a_stored_index_is_found(data_folder: Path, make_config: MakeConfig, name: str) -> None:
    open_training_data(make_config(data_folder))
    array = next(data_folder.glob(f"index_cache/beta/train-*/epoch-00000/{name}.npy"))
    flip(array, array.stat().st_size - 3)
    with pytest.raises(DataError, match=r"epoch-00000 is damaged; delete it"):
        open_training_data(make_config(data_folder))


def test_an_index_without_hashes_is_made_anew(data_folder: Path, make_config: MakeConfig) -> None:
    open_training_data(make_config(data_folder))
    stored = next(data_folder.glob("index_cache/beta/train-*/epoch-00000"))
    (stored / "sha256.json").unlink()  # as an earlier version left it
    open_training_data(make_config(data_folder))
    assert (stored / "sha256.json").is_file()


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_a_damaged_index_is_named(data_folder: Path, make_config: MakeConfig) -> None:
    open_training_data(make_config(data_folder))
    stored = next(data_folder.glob("index_cache/beta/train-*/epoch-00000"))
    (stored / "sample_index.npy").write_bytes(b"short")
    with pytest.raises(DataError, match=r"epoch-00000 is damaged; delete it"):
        open_training_data(make_config(data_folder))


def test_a_folder_that_cannot_be_written_serves_as_well(
    data_folder: Path, make_config: MakeConfig, caplog: pytest.LogCaptureFixture
) -> None:
    expected = samples(open_training_data(make_config(data_folder)), 20)
    shutil.rmtree(data_folder / "index_cache")
    (data_folder / "index_cache").write_text("in the way")
    assert torch.equal(samples(open_training_data(make_config(data_folder)), 20), expected)
    assert "cannot store the sample index" in caplog.text


@pytest.mark.slow
def test_ranks_agree_and_the_first_one_stores(data_folder: Path, make_config: MakeConfig) -> None:
    config = make_config(data_folder)
    alone = samples(open_training_data(config), 900)
    shutil.rmtree(data_folder / "index_cache")

    def read() -> torch.Tensor:
        source = open_training_data(config)
        stored = list(data_folder.glob("index_cache/*/train-*/epoch-00000"))
        assert len(stored) == 2
        open_validation_data(config)
        return samples(source, 900)  # alpha's second epoch is built on the way

    for tokens in run_distributed(3, read):
        assert torch.equal(tokens, alone)


def test_errors_name_path_and_remedy(data_folder: Path, make_config: MakeConfig, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"nowhere does not exist; make it with `ultramem data prepare --out .*nowhere`"
    ):
        open_training_data(make_config(tmp_path / "nowhere"))
    with pytest.raises(
        DataError, match=r"data.sources.alhpa is not a source of .* alpha, beta; the nearest is \"alpha\""
    ):
        open_training_data(make_config(data_folder, data={"sources": {"alhpa": 1.0}}))
    with pytest.raises(DataError, match=r"has 300 entries, more than model.vocab_size = 256; set model.vocab_size=300"):
        open_training_data(make_config(data_folder, model={"vocab_size": 256}))
    with pytest.raises(
        DataError, match=r"train.bin holds \d+ tokens, and a sample of model.seq_length = 65536 needs 65537"
    ):
        open_training_data(make_config(data_folder, model={"seq_length": 65536}))


def test_a_missing_tokenizer_or_file_names_the_command(data_folder: Path, make_config: MakeConfig) -> None:
    (data_folder / "beta/train.idx").rename(data_folder / "kept")
    with pytest.raises(DataError, match=r"beta/train.idx does not exist; make it with `ultramem data build"):
        open_training_data(make_config(data_folder))
    shutil.rmtree(data_folder / "alpha")
    shutil.rmtree(data_folder / "beta")
    with pytest.raises(DataError, match=r"holds no <source>/train.bin; make it with `ultramem data build"):
        open_training_data(make_config(data_folder))
    (data_folder / "tokenizer.json").unlink()
    with pytest.raises(DataError, match=r"tokenizer.json does not exist"):
        open_training_data(make_config(data_folder))


def test_cut_off_files_are_refused(data_folder: Path, make_config: MakeConfig) -> None:
    size = (data_folder / "alpha/train.bin").stat().st_size
    os.truncate(data_folder / "alpha/train.bin", size - 2)
    with pytest.raises(DataError, match=rf"alpha/train.bin has {size - 2} bytes, .* tokens of 2 bytes = {size}"):
        open_training_data(make_config(data_folder))
    os.truncate(data_folder / "alpha/train.idx", 100)
    with pytest.raises(DataError, match=r"alpha/train.idx has 100 bytes, but its header asks for \d+"):
        open_training_data(make_config(data_folder))
    (data_folder / "alpha/train.idx").write_text("no index")
    with pytest.raises(DataError, match=r"alpha/train.idx is not the index of an indexed dataset"):
        open_training_data(make_config(data_folder))


def test_a_source_of_another_tokenizer_is_refused(data_folder: Path, make_config: MakeConfig) -> None:
    raw = data_folder.parent / "raw"
    make_tokenizer(raw, data_folder, 290)
    build(raw, data_folder, ["alpha"], workers=1)
    with pytest.raises(DataError, match=r"beta was encoded with another tokenizer .*--sources beta"):
        open_training_data(make_config(data_folder))
    config = make_config(data_folder, data={"sources": {"alpha": 1.0}})
    assert open_training_data(config)[0]["tokens"].max() < 290
