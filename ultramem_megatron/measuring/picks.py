"""Random picks, as retrieval might have found them."""

# Letters: T tokens, K picks per token, N rows, h score cores.

import torch
from torch import Tensor

from ultramem_megatron.parallel.partition.base import Picks
from ultramem_megatron.planning.validation.results import BenchShape, Skew


def draw_rows(count: int, num_rows: int, skew: Skew, generator: torch.Generator) -> Tensor:
    """int32 [count], in [0, ``num_rows``). The popular rows follow from ``num_rows`` alone, so that all ranks
    mean the same ones."""
    if skew is Skew.UNIFORM:
        return torch.randint(num_rows, (count,), generator=generator).int()
    total_N = torch.arange(1, num_rows + 1, dtype=torch.float64).reciprocal().cumsum(0)
    draws = torch.rand(count, generator=generator, dtype=torch.float64) * total_N[-1]
    popularity = torch.searchsorted(total_N, draws).clamp_(max=num_rows - 1)
    place_N = torch.randperm(num_rows, generator=torch.Generator().manual_seed(num_rows))
    return place_N[popularity].int()


def draw_picks(shape: BenchShape, dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> Picks:
    """Of the tokens of one rank."""
    tokens, picks = shape.tokens, shape.top_m
    rows_TK = draw_rows(tokens * picks, shape.num_rows, shape.skew, generator).view(tokens, picks)
    blocks_TK = torch.randint(shape.expansion, (tokens, picks), generator=generator).to(torch.uint8)
    scores_hTK = torch.rand(shape.cores, tokens, picks, generator=generator).to(dtype)
    return Picks(rows_TK.to(device), blocks_TK.to(device), scores_hTK.to(device))
