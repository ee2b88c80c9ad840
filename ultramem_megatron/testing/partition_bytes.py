"""What the planner says that each rank sends for a case, knowing the picks; and that it was sent."""

# Letters: N rows of the table, K picks per token, P ranks.

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ultramem_megatron.config.memory import PartitionName
from ultramem_megatron.planning.comm_cost import (
    OwnerCounts,
    WireBytes,
    dimension_wise_bytes,
    dimension_wise_product_bytes,
    grid_bytes,
    grid_product_bytes,
    number_wise_bytes,
    number_wise_pooled_bytes,
    number_wise_pooled_product_bytes,
    number_wise_product_bytes,
)
from ultramem_megatron.testing.partition_cases import Case, Lookup
from ultramem_megatron.testing.partition_runs import Found, shards

UNEVEN_BYTES = (PartitionName.DIMENSION_WISE, PartitionName.GRID)
"""Priced for ranks with as many tokens each; where they differ, right only for the sum over the ranks."""


def distinct_rows_by_owner(case: Case, ranks: int) -> Tensor:
    """int64 [P, P]: distinct rows of owner q among the picks of rank p."""
    owner_N = _owner_of_rows(case, ranks)
    picked = [case.of_rank(case.rows_GK, rank).unique() for rank in range(ranks)]
    return torch.stack([torch.bincount(owner_N[rows], minlength=ranks) for rows in picked])


def picks_by_owner(case: Case, ranks: int) -> Tensor:
    """int64 [P, P]: picks of rank p at owner q."""
    owner_N = _owner_of_rows(case, ranks)
    picked = [case.of_rank(case.rows_GK, rank).flatten() for rank in range(ranks)]
    return torch.stack([torch.bincount(owner_N[rows], minlength=ranks) for rows in picked])


def groups_by_owner(case: Case, ranks: int) -> Tensor:
    """int64 [P, P]: how many tokens, in a lookup tokens and blocks, of rank p have a pick at owner q."""
    owner_GK = _owner_of_rows(case, ranks)[case.rows_GK]
    token_GK = torch.arange(len(owner_GK)).unsqueeze(1).expand(owner_GK.shape)
    block_GK = case.blocks_GK if isinstance(case, Lookup) else torch.zeros_like(owner_GK)
    counts_PP = torch.zeros(ranks, ranks, dtype=torch.int64)
    home_G = torch.arange(ranks).repeat_interleave(torch.tensor(case.tokens))
    triples = torch.stack([x.flatten() for x in (token_GK, block_GK, owner_GK)], dim=1)
    for token, _, owner in set(map(tuple, triples.tolist())):
        counts_PP[home_G[token], owner] += 1
    return counts_PP


def sent_and_served(counts_PP: Tensor) -> list[tuple[int, int]]:
    """For each rank: what it asks of others, and what others ask of it."""
    own_P = counts_PP.diagonal()
    return list(zip((counts_PP.sum(1) - own_P).tolist(), (counts_PP.sum(0) - own_P).tolist(), strict=True))


def predicted_bytes(name: PartitionName, case: Case, ranks: int) -> list[WireBytes]:
    """For each rank what the planner counts."""
    shapes = [case.lookup_shape(rank) for rank in range(ranks)]
    pooled = isinstance(case, Lookup)
    match name:
        case PartitionName.NUMBER_WISE:
            counts = sent_and_served(distinct_rows_by_owner(case, ranks))
            count_rows = number_wise_bytes if pooled else number_wise_product_bytes
            return [count_rows(shape, ranks, *count) for shape, count in zip(shapes, counts, strict=True)]
        case PartitionName.NUMBER_WISE_POOLED:
            both = zip(
                *(sent_and_served(count(case, ranks)) for count in (picks_by_owner, groups_by_owner)), strict=True
            )
            owner_counts = [OwnerCounts(*(n for pair in zip(*counts, strict=True) for n in pair)) for counts in both]
            count_sums = number_wise_pooled_bytes if pooled else number_wise_pooled_product_bytes
            return [count_sums(shape, ranks, counts) for shape, counts in zip(shapes, owner_counts, strict=True)]
        case PartitionName.DIMENSION_WISE:
            count_columns = dimension_wise_bytes if pooled else dimension_wise_product_bytes
            return [count_columns(shape, ranks) for shape in shapes]
        case PartitionName.GRID:
            counts = sent_and_served(distinct_rows_by_owner(*_as_nodes(case, ranks)))
            count_grid = grid_bytes if pooled else grid_product_bytes
            size = case.node_size
            return [count_grid(shape, ranks, size, *counts[rank // size]) for rank, shape in enumerate(shapes)]
        case _:
            return [WireBytes() for _ in shapes]


def assert_bytes(found: Sequence[Found], predicted: Sequence[WireBytes]) -> None:
    """Each rank sent what was predicted, to the byte."""
    for one, wire in zip(found, predicted, strict=True):
        assert one.traffic.forward_bytes == wire.forward_bytes
        assert one.traffic.backward_bytes == wire.backward_bytes


def assert_predicted_bytes(name: PartitionName, case: Case, found: Sequence[Found]) -> None:
    """As ``assert_bytes``, with the planner's counts; of ``UNEVEN_BYTES`` their sums where the ranks differ."""
    predicted = predicted_bytes(name, case, len(found))
    if name not in UNEVEN_BYTES or len(set(case.tokens)) == 1:
        assert_bytes(found, predicted)
    assert sum(f.traffic.forward_bytes for f in found) == sum(wire.forward_bytes for wire in predicted)
    assert sum(f.traffic.backward_bytes for f in found) == sum(wire.backward_bytes for wire in predicted)


def _as_nodes(case: Case, ranks: int) -> tuple[Case, int]:
    """The case of nodes that each do as one what their ranks do, and how many they are."""
    nodes = ranks // case.node_size
    tokens = [sum(case.tokens[node * case.node_size : (node + 1) * case.node_size]) for node in range(nodes)]
    return replace(case, tokens=tokens), nodes


def _owner_of_rows(case: Case, ranks: int) -> Tensor:
    owner_N = torch.empty(case.shape.num_rows, dtype=torch.int64)
    for rank, shard in enumerate(shards(PartitionName.NUMBER_WISE, case.shape, ranks)):
        owner_N[shard.rows.start : shard.rows.stop] = rank
    return owner_N
