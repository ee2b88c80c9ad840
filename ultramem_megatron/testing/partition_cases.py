"""Lookups and inner products by all ranks of a group, with all that they hold: what tests put to every partition."""

# Letters: N rows of the table, V value dimension, n and v one rank's share of them, T tokens of a rank, G of all,
#          K picks per token, E blocks, h score cores.

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ultramem_megatron.parallel.partition.base import Picks, TableShape, ValuePartition
from ultramem_megatron.planning.comm_cost import LookupShape
from ultramem_megatron.testing.reference_layer import reference_pooling

NUM_PICKS = 6


@dataclass(frozen=True)
class Case(ABC):
    """One operation by all ranks of a group, with all that they hold."""

    shape: TableShape
    tokens: list[int]
    table_NV: Tensor
    rows_GK: Tensor
    node_size: int = field(kw_only=True)
    """Ranks of a node, for a grid."""

    def of_rank(self, whole: Tensor, rank: int) -> Tensor:
        """The tokens of ``rank``."""
        return whole.split(self.tokens)[rank]

    def rows(self, rank: int) -> Tensor:
        """int32 [T, K]."""
        return self.of_rank(self.rows_GK, rank).int()

    @property
    @abstractmethod
    def input_G(self) -> Tensor:
        """[G, ...], what the table is met with, and what a gradient is due to."""

    @property
    @abstractmethod
    def cotangent_G(self) -> Tensor:
        """[G, ...], the gradient of the output."""

    @abstractmethod
    def run(self, partition: ValuePartition, weight_nv: Tensor, input_T: Tensor, rank: int) -> Tensor:
        """The operation, collectively; ``input_T`` are this rank's tokens of ``input_G``."""

    @abstractmethod
    def definition(self, table_NV: Tensor, input_G: Tensor) -> Tensor:
        """What it should be, on the whole table."""

    @property
    def output_type(self) -> torch.dtype:
        return self.table_NV.dtype

    @abstractmethod
    def lookup_shape(self, rank: int) -> LookupShape:
        """The planner's view."""


@dataclass(frozen=True)
class Lookup(Case):
    """Rows pooled by block with the scores of each core."""

    blocks_GK: Tensor
    scores_GhK: Tensor
    cotangent_GEV: Tensor

    @property
    def input_G(self) -> Tensor:
        return self.scores_GhK

    @property
    def cotangent_G(self) -> Tensor:
        return self.cotangent_GEV

    def run(self, partition: ValuePartition, weight_nv: Tensor, input_T: Tensor, rank: int) -> Tensor:
        blocks_TK = self.of_rank(self.blocks_GK, rank).to(torch.uint8)
        scores_hTK = input_T.transpose(0, 1).contiguous()
        return partition(weight_nv, Picks(self.rows(rank), blocks_TK, scores_hTK), self.tokens)

    def definition(self, table_NV: Tensor, input_G: Tensor) -> Tensor:
        scores_hGK = input_G.transpose(0, 1)
        return reference_pooling(table_NV, self.rows_GK, self.blocks_GK, scores_hGK, num_blocks=self.shape.blocks)

    def lookup_shape(self, rank: int) -> LookupShape:
        return LookupShape(
            tokens=self.tokens[rank],
            picks=self.rows_GK.shape[1],
            num_rows=self.shape.num_rows,
            value_dim=self.shape.value_dim,
            element_bytes=self.table_NV.element_size(),
            expansion=self.shape.blocks,
            cores=self.shape.cores,
        )


@dataclass(frozen=True)
class Products(Case):
    """Inner products of rows with the vector of their token."""

    vectors_GV: Tensor
    cotangent_GK: Tensor

    @property
    def input_G(self) -> Tensor:
        return self.vectors_GV

    @property
    def cotangent_G(self) -> Tensor:
        return self.cotangent_GK

    @property
    def output_type(self) -> torch.dtype:
        return torch.float32

    def run(self, partition: ValuePartition, weight_nv: Tensor, input_T: Tensor, rank: int) -> Tensor:
        return partition.inner_products(weight_nv, self.rows(rank), input_T, self.tokens)

    def definition(self, table_NV: Tensor, input_G: Tensor) -> Tensor:
        return (table_NV[self.rows_GK] * input_G.unsqueeze(1)).sum(dim=2)

    def lookup_shape(self, rank: int) -> LookupShape:
        return LookupShape(
            tokens=self.tokens[rank],
            picks=self.rows_GK.shape[1],
            num_rows=self.shape.num_rows,
            value_dim=0,
            pre_value_dim=self.shape.value_dim,
            element_bytes=self.table_NV.element_size(),
        )


MakeCase = Callable[..., Case]


def usual_node_size(ranks: int) -> int:
    """Half of the ranks, where they are even: two nodes; else each is a node of its own."""
    return 1 if ranks % 2 else ranks // 2


def make_lookup(
    shape: TableShape,
    tokens: list[int],
    dtype: torch.dtype,
    candidates: Tensor,
    picks: int = NUM_PICKS,
    node_size: int | None = None,
) -> Lookup:
    """Random everything; rows are drawn from ``candidates``, so few of them repeat in a token and across ranks."""
    total = sum(tokens)
    return Lookup(
        shape=shape,
        tokens=tokens,
        table_NV=torch.randn(shape.num_rows, shape.value_dim).to(dtype),
        rows_GK=candidates[torch.randint(len(candidates), (total, picks))],
        blocks_GK=torch.randint(shape.blocks, (total, picks)),
        scores_GhK=torch.randn(total, shape.cores, picks).to(dtype),
        cotangent_GEV=torch.randn(total, shape.blocks, shape.value_dim).to(dtype),
        node_size=node_size or usual_node_size(len(tokens)),
    )


def make_products(
    shape: TableShape,
    tokens: list[int],
    dtype: torch.dtype,
    candidates: Tensor,
    picks: int = NUM_PICKS,
    node_size: int | None = None,
) -> Products:
    """As ``make_lookup``. Blocks and cores of ``shape`` play no part."""
    total = sum(tokens)
    return Products(
        shape=shape,
        tokens=tokens,
        table_NV=torch.randn(shape.num_rows, shape.value_dim).to(dtype),
        rows_GK=candidates[torch.randint(len(candidates), (total, picks))],
        vectors_GV=torch.randn(total, shape.value_dim).to(dtype),
        cotangent_GK=torch.randn(total, picks),
        node_size=node_size or usual_node_size(len(tokens)),
    )


NUM_ROWS = 13
"""No multiple of 2, 3, 4 or 8."""
VALUE_DIM = 24
"""With two cores, 3 ranks hold columns of both cores, and 4 or 8 ranks a part of one."""
RAGGED = {1: [5], 2: [5, 0], 3: [5, 0, 3], 4: [5, 0, 3, 1], 8: [5, 0, 3, 1, 0, 2, 1, 4]}
DTYPES = (torch.float32, torch.bfloat16)


def shapes_of(make: MakeCase) -> list[TableShape]:
    """One block and one core, and several of both where the operation heeds them."""
    sizes = [(1, 1), (4, 2)] if make is make_lookup else [(1, 1)]
    return [TableShape(num_rows=NUM_ROWS, value_dim=VALUE_DIM, blocks=E, cores=h) for E, h in sizes]


def matrix_of_cases(make: MakeCase, ranks: int, node_size: int | None = None) -> dict[str, Case]:
    """By name: every shape and type, with uniform and skewed picks, with a rank without tokens and with none at all."""
    uniform, equal = torch.arange(NUM_ROWS), [3] * ranks
    zipf = torch.cat([torch.full((NUM_ROWS // (row + 1),), row) for row in range(NUM_ROWS)])
    kinds = {
        "uniform": (equal, uniform),
        "skewed": (equal, zipf),
        "one row": (equal, uniform[-1:]),
        "empty rank": (RAGGED[ranks], uniform),
        "no tokens": ([0] * ranks, uniform),
    }
    return {
        f"{make.__name__}, E={shape.blocks}, h={shape.cores}, {dtype}, {kind}": make(
            shape, tokens, dtype, candidates, node_size=node_size
        )
        for shape in shapes_of(make)
        for dtype in DTYPES
        for kind, (tokens, candidates) in kinds.items()
    }
