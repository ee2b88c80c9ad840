"""A memory layer as plain PyTorch has it: dense scores, topk, gather, einsum. What kernels are measured against.

The weights are those of a ``MemoryLayer``, and so is the result. Nothing is fused and nothing is left out: the scores
of all keys have a gradient, and the picked rows are kept for the backward pass.
"""

# Letters: s positions, b sequences, D hidden width, T = s * b tokens, H heads, S keys of a side, r components of a
#          score, c candidates of a side, m kept per head, K picks, E blocks, h cores, V value dimension.

import torch
from torch import Tensor

from ultramem_kernels.precision import widened
from ultramem_megatron.memory.layer import MemoryLayer
from ultramem_megatron.memory.tucker import TuckerRetrieval
from ultramem_megatron.memory.value_table import ValueTable
from ultramem_megatron.parallel.partition.base import Picks
from ultramem_megatron.parallel.partition.pooling import read_rows


def plain_forward(layer: MemoryLayer, x_sbD: Tensor, *, dense_gradient: bool = False) -> Tensor:
    """The output of an UltraMem layer without pre-values, whose table is whole on this rank.

    Args:
        layer: Gives the weights; with a Tucker core.
        x_sbD: What it reads.
        dense_gradient: Let autograd make a gradient of the size of the table, not add to ``main_grad``.

    Returns:
        [s, b, D].
    """
    assert isinstance(layer.retrieval, TuckerRetrieval) and layer.pre_values is None
    slots_TK, scores_hTK = _retrieve(layer.retrieval, x_sbD)
    rows_TK, blocks_TK = layer.addresses(slots_TK)
    picks = Picks(rows_TK, blocks_TK, scores_hTK.to(layer.table.weight.dtype))
    pooled_TEV = plain_lookup(layer.table, picks, dense_gradient=dense_gradient)
    return layer.projection(pooled_TEV).view(x_sbD.shape)


def plain_lookup(table: ValueTable, picks: Picks, *, dense_gradient: bool = False) -> Tensor:
    """pooled_TEV of a table that is whole on this rank: gather, then a product with the weights of each block.

    Args:
        table: Gives the rows.
        picks: What to read, and its weights.
        dense_gradient: See ``plain_forward``.
    """
    weight, rows_TK = table.weight, picks.rows_TK
    rows_TKV = weight[rows_TK.long()] if dense_gradient else read_rows(weight, rows_TK)
    return _pool(rows_TKV, picks, table.partition.table.blocks)


def _retrieve(retrieval: TuckerRetrieval, x_sbD: Tensor) -> tuple[Tensor, Tensor]:
    shape, core = retrieval.shape, widened(retrieval.core.weight)
    scores_TH2rS = torch.einsum("thcad,hcsad->thcas", *retrieval.queries_and_keys(x_sbD))
    sides_H2r = torch.stack([retrieval.core.left, retrieval.core.right], dim=1).to(core.dtype)
    projected_TH2S = torch.einsum("hcr,thcrs->thcs", sides_H2r, scores_TH2rS.detach())
    index_TH2c = projected_TH2S.topk(shape.candidates, dim=-1).indices
    best_TH2rc = scores_TH2rS.gather(-1, index_TH2c.unsqueeze(3).expand(-1, -1, -1, shape.ranks, -1))
    rows_THrc, columns_THrc = best_TH2rc.unbind(2)
    with torch.no_grad():
        grid_THcc = torch.einsum("thai,hab,thbj->thij", rows_THrc, core.sum(dim=1), columns_THrc)
        flat_THm = grid_THcc.flatten(2).topk(shape.top_m, dim=-1).indices
    slots_THm = _grid_slots(index_TH2c, flat_THm, shape.grid_side)
    every = (-1, -1, shape.ranks, -1)
    rows_THrm = rows_THrc.gather(-1, (flat_THm // shape.candidates).unsqueeze(2).expand(every))
    columns_THrm = columns_THrc.gather(-1, (flat_THm % shape.candidates).unsqueeze(2).expand(every))
    scores_hTHm = torch.einsum("tham,hcab,thbm->cthm", rows_THrm, core, columns_THrm)
    return slots_THm.flatten(1), scores_hTHm.flatten(2)


def _grid_slots(index_TH2c: Tensor, flat_THm: Tensor, side: int) -> Tensor:
    """Slots ``row * side + column`` of places ``flat`` in the c x c grid of candidate rows and columns."""
    c = index_TH2c.shape[-1]
    rows_THm = index_TH2c[:, :, 0].gather(-1, flat_THm // c)
    columns_THm = index_TH2c[:, :, 1].gather(-1, flat_THm % c)
    return rows_THm * side + columns_THm


def _pool(rows_TKV: Tensor, picks: Picks, blocks: int) -> Tensor:
    of_block_TEK = picks.blocks_TK.unsqueeze(1) == torch.arange(blocks, device=rows_TKV.device)[:, None]
    pieces = []
    for scores_TK, rows_TKw in zip(picks.scores_hTK, rows_TKV.chunk(picks.scores_hTK.shape[0], dim=2), strict=True):
        pieces.append((of_block_TEK * widened(scores_TK).unsqueeze(1)) @ widened(rows_TKw))
    return torch.cat(pieces, dim=-1).to(rows_TKV.dtype)
