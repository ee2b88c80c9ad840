"""Blending: proportions hold at every length, and no chunk border shows."""

import pytest
import torch
from torch import Tensor

from ultramem_megatron.data.blended import BlendedSource
from ultramem_megatron.data.token_source import TokenSource


class Named(TokenSource):
    def __init__(self, name: int) -> None:
        self.name = name

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"tokens": torch.tensor([self.name, i]), "labels": torch.tensor([i, i])}

    @property
    def fingerprint(self) -> str:
        return f"named-{self.name}"


def blended(weights: list[float], chunk_samples: int = 1000) -> BlendedSource:
    return BlendedSource([Named(n) for n in range(len(weights))], weights, chunk_samples)


@pytest.mark.parametrize("weights", [[1.0], [1.0, 1.0], [0.7, 0.2, 0.1], [1e6, 3.0]])
def test_no_source_is_ever_more_than_one_sample_off_its_share(weights: list[float]) -> None:
    source = blended(weights)
    counts = [0] * len(weights)
    for i in range(500):
        which, number = source.locate(i)
        assert number == counts[which]  # each source is read in order, none of its samples left out
        counts[which] += 1
        for count, weight in zip(counts, weights, strict=True):
            assert abs(count - (i + 1) * weight / sum(weights)) < len(weights)


def test_chunks_do_not_show_and_may_be_read_in_any_order() -> None:
    whole = [blended([0.5, 0.3, 0.2]).locate(i) for i in range(64)]
    chunked = blended([0.5, 0.3, 0.2], chunk_samples=7)
    assert [chunked.locate(i) for i in range(64)] == whole
    assert [chunked.locate(i) for i in reversed(range(64))] == whole[::-1]


def test_samples_are_those_of_the_sources() -> None:
    source = blended([1.0, 2.0])
    for i in range(10):
        assert source[i]["tokens"].tolist() == list(source.locate(i))


def test_fingerprint_tells_weights_apart() -> None:
    assert blended([1.0, 2.0]).fingerprint == blended([2.0, 4.0]).fingerprint
    assert blended([1.0, 2.0]).fingerprint != blended([1.0, 3.0]).fingerprint
