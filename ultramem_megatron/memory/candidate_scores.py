"""The best candidate keys of each side and their scores, whose gradient is computed for these alone."""

import torch
from torch import Tensor

from ultramem_kernels.candidates import best_candidates, best_of_components
from ultramem_kernels.pool import pool, pool_groups
from ultramem_kernels.product import LEAST_PRODUCTS, product

# Letters: T tokens, B = H heads x 2 sides, S keys of a side, r components of a score, d channels of a component's key,
#          c candidates kept.

PART_ELEMENTS = 2**20
"""Scores that are there at a time on a CPU, 4 MiB in fp32. On a GPU all are: its launches cost more than memory."""


def best_scores(
    queries_TBrd: Tensor, keys_BSrd: Tensor, direction_Br: Tensor, candidates: int
) -> tuple[Tensor, Tensor]:
    """Of each side the keys whose scores, projected on ``direction``, are largest, and all components of their scores.

    The scores of all keys are computed, and forgotten. Backward, only those of the candidates have a gradient: c of S.

    Args:
        queries_TBrd: fp32 (fp64 in gradient checks), as ``keys_BSrd``.
        keys_BSrd: Keys of each head and side.
        direction_Br: What chooses; it gets no gradient.
        candidates: c.

    Returns:
        index_TBc, int64 keys in an order that depends on the device, and best_TBrc, their scores.
    """
    return _BestScores.apply(queries_TBrd, keys_BSrd, direction_Br, candidates)


class _BestScores(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, queries_TBrd: Tensor, keys_BSrd: Tensor, direction_Br: Tensor, candidates: int
    ) -> tuple[Tensor, Tensor]:
        find = _find_at_once if queries_TBrd.is_cuda or _are_few(queries_TBrd, keys_BSrd) else _find_part_by_part
        queries_BrTd, keys_BrSd = queries_TBrd.permute(1, 2, 0, 3), keys_BSrd.permute(0, 2, 1, 3)
        index_TBc, best_TBrc = find(queries_BrTd, keys_BrSd, direction_Br, candidates)
        ctx.save_for_backward(queries_TBrd, keys_BSrd, index_TBc)
        ctx.mark_non_differentiable(index_TBc)
        return index_TBc, best_TBrc

    @staticmethod
    def backward(ctx, _, grad_TBrc: Tensor):
        """A score is an inner product: its gradient, times the key, is the query's; times the query, the key's."""
        queries_TBrd, keys_BSrd, index_TBc = ctx.saved_tensors
        tokens, batches, ranks, width = queries_TBrd.shape
        side, candidates = keys_BSrd.shape[1], index_TBc.shape[2]
        row_TBc = index_TBc + torch.arange(batches, device=index_TBc.device).unsqueeze(1) * side
        row_Gc, weight_rGc = row_TBc.flatten(0, 1), grad_TBrc.permute(2, 0, 1, 3).flatten(1, 2).contiguous()
        queries_grad = keys_grad = None
        if ctx.needs_input_grad[0]:
            keys = keys_BSrd.reshape(batches * side, ranks * width)
            one_block_Gc = torch.zeros_like(row_Gc, dtype=torch.uint8)
            queries_grad = pool(keys, row_Gc, one_block_Gc, weight_rGc, 1).view(queries_TBrd.shape)
        if ctx.needs_input_grad[1]:
            sorted_A, order_A = row_Gc.reshape(-1).int().sort(stable=True)
            queries = queries_TBrd.reshape(tokens * batches, ranks * width)
            weight_rA = weight_rGc.flatten(1).index_select(1, order_A)
            keys_grad = pool_groups(queries, order_A // candidates, sorted_A.long(), weight_rA, batches * side)
            keys_grad = keys_grad.view(keys_BSrd.shape)
        return queries_grad, keys_grad, None, None


def _are_few(queries_TBrd: Tensor, keys_BSrd: Tensor) -> bool:
    """Whether the products of single batches are so small that one of all is faster."""
    return queries_TBrd[:, 0, 0].numel() * keys_BSrd.shape[1] < LEAST_PRODUCTS


def _find_at_once(
    queries_BrTd: Tensor, keys_BrSd: Tensor, direction_Br: Tensor, candidates: int
) -> tuple[Tensor, Tensor]:
    """index_TBc and best_TBrc."""
    scores_BrTS = queries_BrTd @ keys_BrSd.transpose(2, 3)
    index_BTc = best_candidates(scores_BrTS, direction_Br, candidates)
    best_BrTc = scores_BrTS.gather(3, index_BTc.unsqueeze(1).expand(-1, scores_BrTS.shape[1], -1, -1))
    return index_BTc.transpose(0, 1).contiguous(), best_BrTc.permute(2, 0, 1, 3).contiguous()


def _find_part_by_part(
    queries_BrTd: Tensor, keys_BrSd: Tensor, direction_Br: Tensor, candidates: int
) -> tuple[Tensor, Tensor]:
    """The same of one batch and some tokens at a time, each component's scores where its product has left them."""
    batches, ranks, tokens, _ = queries_BrTd.shape
    index_TBc = torch.empty((tokens, batches, candidates), dtype=torch.int64)
    best_TBrc = queries_BrTd.new_empty((tokens, batches, ranks, candidates))
    size = max(1, PART_ELEMENTS // (ranks * keys_BrSd.shape[2]))
    for batch in range(batches):
        for part in (slice(start, start + size) for start in range(0, tokens, size)):
            scores = [product(queries_BrTd[batch, rank, part], keys_BrSd[batch, rank]) for rank in range(ranks)]
            index_Tc = best_of_components(scores, direction_Br[batch], candidates)
            index_TBc[part, batch] = index_Tc
            for rank, scores_TS in enumerate(scores):
                best_TBrc[part, batch, rank] = scores_TS.gather(1, index_Tc)
    return index_TBc, best_TBrc
