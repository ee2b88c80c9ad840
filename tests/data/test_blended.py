"""Blending: proportions hold at every length, and sample 10^9 costs what sample 0 costs."""

import tracemalloc

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


def blended(weights: list[float]) -> BlendedSource:
    return BlendedSource([Named(n) for n in range(len(weights))], weights)


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


@pytest.mark.parametrize("weights", [[0.7, 0.3], [3.0, 1.0], [12_345.0, 54_321.0], [1.0, 1.0], [1e-3, 5.0]])
def test_two_sources_share_as_if_each_sample_went_to_the_one_further_behind(weights: list[float]) -> None:
    source, shares, counts = blended(weights), [weight / sum(weights) for weight in weights], [0, 0]
    for i in range(2000):
        behind = [share * max(i, 1) - count for share, count in zip(shares, counts, strict=True)]
        if abs(behind[0] - behind[1]) > 1e-9:  # else a tie, in which rounding decides
            assert source.locate(i)[0] == (0 if behind[0] > behind[1] else 1)
        counts[source.locate(i)[0]] += 1


def test_far_from_the_start_nothing_is_lost_repeated_or_kept_in_memory() -> None:
    weights = [0.5, 0.3, 0.15, 0.05, 1e-7]
    source, start = blended(weights), 10**9
    tracemalloc.start()
    found = [source.locate(i) for i in range(start, start + 3000)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20
    for which, weight in enumerate(weights):
        numbers = [number for one, number in found if one == which]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers))) if numbers else True
        if numbers:
            assert abs(numbers[0] - start * weight / sum(weights)) < len(weights)
    assert source.locate(start + 7) == found[7]


def test_samples_are_those_of_the_sources() -> None:
    source = blended([1.0, 2.0])
    for i in range(10):
        assert source[i]["tokens"].tolist() == list(source.locate(i))


def test_fingerprint_tells_weights_apart() -> None:
    assert blended([1.0, 2.0]).fingerprint == blended([2.0, 4.0]).fingerprint
    assert blended([1.0, 2.0]).fingerprint != blended([1.0, 3.0]).fingerprint
