"""Whether a checkpoint goes on with the data that it was trained on: refused with both hashes, or taken and said."""

from collections.abc import Callable
from pathlib import Path

import pytest
from torch import Tensor

from ultramem_megatron.checkpoint.manifest import Manifest
from ultramem_megatron.checkpoint.same_data import check_same_tokenizer, compare_data
from ultramem_megatron.data.identity import DataIdentity, SourceIdentity
from ultramem_megatron.data.token_source import TrainingSource
from ultramem_megatron.errors import CheckpointError

MakeManifest = Callable[..., Manifest]
FOLDER = Path("runs/a/step_00000010")


def identity(tokenizer: str = "t", binary: str = "b", index: str = "i", seed: int = 1) -> DataIdentity:
    source = SourceIdentity(binary=binary * 64, index=index * 64, share=1.0)
    return DataIdentity(tokenizer=tokenizer * 64, sources={"alpha": source}, seed=seed, seq_length=32)


class Source(TrainingSource):
    def __init__(self, held: DataIdentity, order: str = "order") -> None:
        self.held, self.order = held, order

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        raise AssertionError("nothing is read")

    @property
    def fingerprint(self) -> str:
        return self.order

    @property
    def identity(self) -> DataIdentity:
        return self.held


@pytest.fixture
def written(make_manifest: MakeManifest) -> Manifest:
    return make_manifest(10).model_copy(update={"data": identity(), "data_fingerprint": identity().fingerprint})


@pytest.fixture
def old(make_manifest: MakeManifest) -> Manifest:
    """From before contents were hashed."""
    return make_manifest(10).model_copy(update={"data_fingerprint": "order"})


def compare(manifest: Manifest, source: Source, *, allow_change: bool = False) -> list[str]:
    return compare_data(FOLDER, manifest, source, allow_change=allow_change)


def test_the_same_data_need_no_word(written: Manifest) -> None:
    assert compare(written, Source(identity())) == []
    assert Manifest.model_validate_json(written.model_dump_json()) == written


@pytest.mark.parametrize(
    ("changed", "file"),
    [("tokenizer", r"tokenizer\.json"), ("binary", r"alpha/train\.bin"), ("index", r"alpha/train\.idx")],
)
def test_other_content_is_refused_with_both_hashes_or_taken_by_a_switch(
    written: Manifest, changed: str, file: str
) -> None:
    other = Source(identity(**{changed: "x"}))
    message = (
        rf"{FOLDER} was trained on other data: {file} has sha256 (.)\1{{63}} there and x{{64}} here\. .*allow_change"
    )
    with pytest.raises(CheckpointError, match=message):
        compare(written, other)
    (said,) = compare(written, other, allow_change=True)
    assert "data.allow_change=true" in said
    assert said.endswith("reads on from sample 40 of its own order")


def test_many_differences_make_one_short_paragraph(written: Manifest) -> None:
    with pytest.raises(CheckpointError, match="and 1 more") as refused:
        compare(written, Source(identity("x", "x", "x")))
    assert len(str(refused.value)) < 800


def test_generated_tokens_are_other_data(written: Manifest) -> None:
    with pytest.raises(CheckpointError, match="a data folder there and generated tokens here"):
        compare(written, Source(DataIdentity(seed=1, seq_length=32)))


def test_another_order_of_the_same_files_is_said(written: Manifest) -> None:
    (said,) = compare(written, Source(identity(seed=2)))
    assert "in another order: training.seed = 1 there and 2 here; this run reads on from sample 40" in said


def test_an_old_checkpoint_is_compared_as_far_as_it_knows(old: Manifest) -> None:
    (said,) = compare(old, Source(identity()))
    assert "was written before contents of data were hashed" in said
    assert "the tokenizer were not compared" in said
    with pytest.raises(CheckpointError, match=r"have the hash order there and other here \(it was written before"):
        compare(old, Source(identity(), order="other"))
    assert compare(old, Source(identity(), order="other"), allow_change=True)


def test_text_is_not_read_with_another_tokenizer(written: Manifest, old: Manifest, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(
        CheckpointError, match=r"tokenizer.json has sha256 44136fa\w+, and it was t{64}; put that one back"
    ):
        check_same_tokenizer(FOLDER, written, tmp_path)
    check_same_tokenizer(FOLDER, old, tmp_path)
