"""Picks of benchmarks: popular rows are the same on every rank, and lie anywhere in the table."""

import torch

from ultramem_megatron.measuring.picks import draw_rows
from ultramem_megatron.planning.validation.results import Skew

NUM_ROWS, COUNT = 1000, 100_000


def counts(skew: Skew, seed: int) -> torch.Tensor:
    rows = draw_rows(COUNT, NUM_ROWS, skew, torch.Generator().manual_seed(seed))
    assert rows.dtype == torch.int32
    return torch.bincount(rows, minlength=NUM_ROWS)


def test_uniform_picks_reach_every_row_alike() -> None:
    found = counts(Skew.UNIFORM, 0)
    assert len(found) == NUM_ROWS
    assert found.float().std() < 2 * (COUNT / NUM_ROWS) ** 0.5


def test_zipf_picks_follow_the_law() -> None:
    found = counts(Skew.ZIPF, 0).sort(descending=True).values
    harmonic = sum(1 / rank for rank in range(1, NUM_ROWS + 1))
    expected = torch.tensor([COUNT / rank / harmonic for rank in (1, 2, 4, 10)])
    torch.testing.assert_close(found[[0, 1, 3, 9]].float(), expected, rtol=0.05, atol=0)


def test_ranks_agree_on_the_popular_rows_and_these_are_spread() -> None:
    first, second = (counts(Skew.ZIPF, seed).topk(8).indices for seed in (0, 1))
    assert first[:5].tolist() == second[:5].tolist()
    assert 0 < (first < NUM_ROWS // 2).sum() < 8
