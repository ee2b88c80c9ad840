"""``pool`` and its gradients as well as PyTorch can do them on a CPU.

Forward, a table of h cores is h times as many rows of a slice each, which ``embedding_bag`` weighs and sums without
keeping them. Backward, picks are taken part by part, so that what is read stays in the cache.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ultramem_kernels.precision import wide_type, widened

# Letters: N rows of the table, V value dimension, w = V / h; A picks in all, a those of one part, G groups of them,
#          h score cores.

PART_ELEMENTS = 2**18
"""Elements that each thread reads at a time, 1 MiB in fp32: about what a core's own cache holds. From 32 MiB on the C
library would return a tensor's memory to the system each time, so that every page of the next is a fault."""
BAG_ROWS = 64
"""Of a bag that is summed for the cache alone: few enough that all threads have some."""


def pool_sorted(table_NV: Tensor, rows_A: Tensor, starts_G: Tensor, scores_hA: Tensor) -> Tensor:
    """Weighted sums of consecutive picks.

    Args:
        table_NV: Contiguous.
        rows_A: int32 or int64 rows of the picks, one group after the other.
        starts_G: int64, the first pick of each group; a group ends where the next one starts.
        scores_hA: Weights, in the same order.

    Returns:
        sums_GV in the type of the table.
    """
    if scores_hA.dtype is table_NV.dtype:
        return _bags(table_NV, rows_A, starts_G, scores_hA)
    # the scores have digits that a bag in the type of the table would round away
    sums_GV = table_NV.new_zeros(starts_G.shape[0], table_NV.shape[1], dtype=wide_type(table_NV))
    group_A = torch.searchsorted(starts_G, torch.arange(rows_A.shape[0]), right=True) - 1
    for part in _parts(rows_A, table_NV):
        rows_aV = widened(fetch_rows(table_NV, rows_A[part]))
        weighed_aV = _by_core(rows_aV, scores_hA).mul_(widened(scores_hA[:, part]).t().unsqueeze(2)).flatten(1)
        sums_GV.index_add_(0, group_A[part], weighed_aV)
    return sums_GV.to(table_NV.dtype)


def _bags(table_NV: Tensor, rows_A: Tensor, starts_G: Tensor, scores_hA: Tensor) -> Tensor:
    cores, width = scores_hA.shape[0], table_NV.shape[1]
    slices = table_NV.view(-1, width // cores)
    if cores > 1:
        rows_A = rows_A.long() * cores  # int32 would overflow at 2**31 slices
    starts_G = starts_G.to(rows_A.dtype)
    sums = [
        F.embedding_bag(rows_A + core if core else rows_A, slices, starts_G, mode="sum", per_sample_weights=scores_A)
        for core, scores_A in enumerate(scores_hA)
    ]
    return torch.stack(sums, dim=1).view(starts_G.shape[0], width) if cores > 1 else sums[0]


def backward(
    grad_GV: Tensor,
    table_NV: Tensor,
    rows_A: Tensor,
    group_A: Tensor,
    scores_hA: Tensor,
    table_grad_NV: Tensor | None,
    scores_grad_hA: Tensor | None,
) -> None:
    """Gradients of weighted sums, part by part: that of the table is added to ``table_grad_NV``, that of the scores
    is written into ``scores_grad_hA``.

    Deterministic: ``index_add_`` adds a row's picks one after the other. The rows are read again, not kept since
    forward.

    Args:
        grad_GV: Of the sums.
        table_NV: As it was.
        rows_A: Rows of the picks, in any order.
        group_A: int64 group of each pick.
        scores_hA: Their weights.
        table_grad_NV: To be added to, or None.
        scores_grad_hA: To be written, or None.
    """
    order_A = _order_for_threads(rows_A)
    rows_A, group_A = rows_A[order_A].long(), group_A[order_A]
    weights_Ah = widened(scores_hA).t()[order_A]
    products_hA = weights_Ah.new_empty(scores_hA.shape)
    parts = _parts(rows_A, table_NV)
    largest = min(rows_A.shape[0], parts[0].stop) if parts else 0
    read, of_sums = _Rows(table_NV, largest), _Rows(grad_GV, largest)
    for part in parts:
        grad_aV = of_sums.fetch(group_A[part])
        if scores_grad_hA is not None:
            _bring_to_cache(table_NV, rows_A[part])
            products_aV = read.fetch(rows_A[part]).mul_(grad_aV)
            products_hA[:, part] = _by_core(products_aV, scores_hA).sum(dim=2).t()
        if table_grad_NV is not None:
            _by_core(grad_aV, scores_hA).mul_(weights_Ah[part].unsqueeze(2))
            _bring_to_cache(table_grad_NV, rows_A[part])
            table_grad_NV.index_add_(0, rows_A[part], grad_aV.to(table_grad_NV.dtype))
    if scores_grad_hA is not None:
        scores_grad_hA.index_copy_(1, order_A, products_hA.to(scores_grad_hA.dtype))


def _order_for_threads(rows_A: Tensor) -> Tensor:
    """Places of the picks in ascending order of their rows if several threads work on them, else as they are.

    ``index_add_`` hands each thread its own rows: where they come in order, these are the picks that the same thread
    has fetched, and nothing goes from one core's cache to another's. Those of one row keep their order.
    """
    if torch.get_num_threads() == 1:
        return torch.arange(rows_A.shape[0])
    return rows_A.int().sort(stable=True).indices


class _Rows:
    """Fetches rows of one table again and again, into the same memory: pages that the C library has returned to the
    system between two parts would cost several times what the reading does."""

    def __init__(self, table_NV: Tensor, most: int) -> None:
        self.table_NV = table_NV.detach()
        self.memory_aV = table_NV.new_empty(most, table_NV.shape[1])

    def fetch(self, rows_a: Tensor) -> Tensor:
        """The rows in the type to compute in, to be written to as one likes; gone with the next call."""
        return widened(torch.index_select(self.table_NV, 0, rows_a, out=self.memory_aV[: rows_a.shape[0]]))


def _bring_to_cache(table_NV: Tensor, rows_a: Tensor) -> None:
    """Sums the rows in bags, for nothing but to have them at hand: bags are fetched ahead, other reads are not.

    Bags are shared out over the threads as the rows of the next operation are, so that a core finds its own.
    """
    starts = torch.arange(0, rows_a.shape[0], BAG_ROWS, dtype=rows_a.dtype)
    F.embedding_bag(rows_a, table_NV.detach(), starts, mode="sum")


def fetch_rows(table_NV: Tensor, rows_a: Tensor) -> Tensor:
    """New memory with the rows.

    A bag of one row is that row, and bags are fetched ahead: twice as fast as ``index_select`` where rows lie far
    apart.

    Args:
        table_NV: Contiguous, on a CPU.
        rows_a: int32 or int64.
    """
    return F.embedding_bag(rows_a, table_NV, torch.arange(rows_a.shape[0], dtype=rows_a.dtype), mode="sum")


def _by_core(x_aV: Tensor, scores_hA: Tensor) -> Tensor:
    """[a, h, w], the same memory."""
    cores = scores_hA.shape[0]
    return x_aV.view(x_aV.shape[0], cores, x_aV.shape[1] // cores)


def _parts(rows_A: Tensor, table_NV: Tensor) -> list[slice]:
    size = max(1, PART_ELEMENTS * torch.get_num_threads() // max(1, table_NV.shape[1]))
    return [slice(start, start + size) for start in range(0, rows_A.shape[0], size)]
