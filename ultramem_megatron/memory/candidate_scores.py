"""The best candidate keys of each side and their scores, whose gradient is computed for these alone."""

import torch
from torch import Tensor

from ultramem_kernels.candidates import best_candidates
from ultramem_kernels.pool import pool, pool_groups
from ultramem_kernels.product import products

# Letters: T tokens, B = H heads x 2 sides, S keys of a side, r components of a score, d channels of a component's key,
#          c candidates kept.

PART_ELEMENTS = 2**20
"""Scores that are there at a time on a CPU, 4 MiB in fp32, which stay in its cache. On a GPU all are: its launches cost
more than memory."""


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
        tokens, batches, ranks, _ = queries_TBrd.shape
        queries_BrTd, keys_BrSd = queries_TBrd.permute(1, 2, 0, 3), keys_BSrd.permute(0, 2, 1, 3)
        index_TBc = torch.empty((tokens, batches, candidates), dtype=torch.int64, device=queries_TBrd.device)
        best_TBrc = queries_TBrd.new_empty((tokens, batches, ranks, candidates))
        for some, part in _parts(queries_TBrd, keys_BSrd):
            scores_BrTS = _scores(queries_BrTd[some, :, part], keys_BrSd[some])
            index_BTc = best_candidates(scores_BrTS, direction_Br[some], candidates)
            index_TBc[part, some] = index_BTc.transpose(0, 1)
            best_BrTc = scores_BrTS.gather(3, index_BTc.unsqueeze(1).expand(-1, ranks, -1, -1))
            best_TBrc[part, some] = best_BrTc.permute(2, 0, 1, 3)
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
            sorted_A, order_A = row_Gc.reshape(-1).sort(stable=True)
            queries = queries_TBrd.reshape(tokens * batches, ranks * width)
            weight_rA = weight_rGc.flatten(1).index_select(1, order_A)
            keys_grad = pool_groups(queries, order_A // candidates, sorted_A, weight_rA, batches * side)
            keys_grad = keys_grad.view(keys_BSrd.shape)
        return queries_grad, keys_grad, None, None


def _scores(queries_BrTd: Tensor, keys_BrSd: Tensor) -> Tensor:
    """[B, r, T, S]."""
    if queries_BrTd.is_cuda:
        return queries_BrTd @ keys_BrSd.transpose(2, 3)
    return products(queries_BrTd.flatten(0, 1), keys_BrSd.flatten(0, 1)).unflatten(0, queries_BrTd.shape[:2])


def _parts(queries_TBrd: Tensor, keys_BSrd: Tensor) -> list[tuple[slice, slice]]:
    """Batches and tokens whose scores are there at a time: all batches of few tokens, or one batch of some."""
    tokens, batches, ranks, _ = queries_TBrd.shape
    of_token = ranks * keys_BSrd.shape[1]
    if queries_TBrd.is_cuda or batches * tokens * of_token <= PART_ELEMENTS:
        return [(slice(batches), slice(tokens))]
    size = max(1, PART_ELEMENTS // of_token)
    starts = range(0, tokens, size)
    return [(slice(batch, batch + 1), slice(start, start + size)) for batch in range(batches) for start in starts]
