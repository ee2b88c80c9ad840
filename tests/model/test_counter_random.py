"""Random numbers as functions of (key, index): their distribution, and that a shard has the numbers of its place."""

import math

import pytest
import torch

from ultramem_megatron.model.counter_random import normal_at, uniform_at
from ultramem_megatron.model.stream_key import stream_key

COUNT = 200_000
KEY = stream_key(1234, "decoder.final_layernorm.weight")


def test_known_numbers() -> None:
    """Python integers, modulo 2**64: the definition of SplitMix64 without int64 arithmetic. A change here changes the
    start of every run."""
    index = torch.tensor([0, 1, 77, 2**40])
    mask = 2**64 - 1
    for place, uniform in zip(index.tolist(), uniform_at(KEY, index).tolist(), strict=True):
        z = (KEY + place * 0x9E3779B97F4A7C15) & mask
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        z ^= z >> 31
        assert uniform == ((z >> 11) + 0.5) / 2**53


def test_uniform_is_uniform() -> None:
    draws = uniform_at(KEY, torch.arange(COUNT))
    assert draws.dtype is torch.float64
    assert 0 < draws.min() < 1e-4 and 1 - 1e-4 < draws.max() < 1
    counts = (draws * 64).long().bincount(minlength=64).double()
    chi_square = float(((counts - COUNT / 64) ** 2 / (COUNT / 64)).sum())
    assert abs(chi_square - 63) < 5 * math.sqrt(2 * 63)


@pytest.mark.parametrize("start", [0, 2**33, 2**62], ids=["from-0", "beyond-32-bits", "wrapping"])
def test_normal_has_the_moments_of_a_normal(start: int) -> None:
    draws = normal_at(KEY, torch.arange(start, start + COUNT))
    moments = [float((draws**power).mean()) for power in range(1, 7)]
    for power, (found, expected) in enumerate(zip(moments, [0, 1, 0, 3, 0, 15], strict=True), start=1):
        # variance of draw^p is E[draw^2p] - E[draw^p]^2; E[draw^2p] = (2p - 1)!!
        spread = math.sqrt((math.prod(range(1, 2 * power, 2)) - expected**2) / COUNT)
        assert abs(found - expected) < 5 * spread, power
    for bound, share in ((1.0, 0.6827), (2.0, 0.9545), (3.0, 0.9973)):
        assert float((draws.abs() < bound).double().mean()) == pytest.approx(share, abs=0.004)


@pytest.mark.parametrize("lag", [1, 2, 64, 1000])
def test_neighbours_are_uncorrelated(lag: int) -> None:
    draws = normal_at(KEY, torch.arange(COUNT))
    assert abs(float((draws[:-lag] * draws[lag:]).mean())) < 5 / math.sqrt(COUNT)


@pytest.mark.parametrize("draw", [uniform_at, normal_at])
def test_a_shard_has_the_numbers_of_its_place(draw) -> None:  # type: ignore[no-untyped-def]
    index = torch.arange(60).view(6, 10)
    whole = draw(KEY, index)
    assert torch.equal(draw(KEY, index[2:5, 3:7]), whole[2:5, 3:7])
    assert torch.equal(draw(KEY, index.T), whole.T)


def test_names_and_seeds_make_other_numbers() -> None:
    index = torch.arange(COUNT)
    streams = [
        normal_at(stream_key(seed, name), index)
        for seed, name in [(1, "decoder.weight"), (1, "decoder.weights"), (2, "decoder.weight"), (12, "decoder.weight")]
    ]
    for i, one in enumerate(streams):
        for other in streams[:i]:
            assert (one != other).float().mean() > 0.999
            assert abs(float((one * other).mean())) < 5 / math.sqrt(COUNT)


def test_keys_are_63_bits_and_separate_seed_from_name() -> None:
    keys = {stream_key(seed, name) for seed in range(50) for name in ("a", "b", "1/a")}
    assert len(keys) == 150
    assert all(0 <= key < 2**63 for key in keys)
    assert stream_key(1, "1/a") != stream_key(11, "a")
