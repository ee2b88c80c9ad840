"""The inner products on a CPU: rows are read part by part, so that what is read stays in the cache."""

import torch
from torch import Tensor

from ultramem_kernels.pool.torch_path import fetch_rows
from ultramem_kernels.precision import wide_type, widened

# Letters: N rows of the table, V its columns; T tokens, K picks per token; A picks, G groups of them.

PART_ELEMENTS = 2**19
"""Elements of rows that are there at a time, 2 MiB in fp32."""


def multiply_rows(table_NV: Tensor, rows_TK: Tensor, vectors_TV: Tensor) -> Tensor:
    """``products_TK``; arguments as in ``op.multiply_rows``."""
    products_TK = torch.empty(rows_TK.shape, dtype=wide_type(table_NV))
    for part in _parts(rows_TK, table_NV.shape[1]):
        rows_tK = rows_TK[part]
        read_tKV = widened(fetch_rows(table_NV, rows_tK.reshape(-1))).view(*rows_tK.shape, table_NV.shape[1])
        products_TK[part] = (read_tKV @ widened(vectors_TV[part]).unsqueeze(2)).squeeze(2)
    return products_TK


def multiply_groups(table_NV: Tensor, rows_A: Tensor, group_A: Tensor, vectors_GV: Tensor) -> Tensor:
    """``products_A``; arguments as in ``op.multiply_groups``."""
    products_A = torch.empty(rows_A.shape, dtype=wide_type(table_NV))
    for part in _parts(rows_A, table_NV.shape[1]):
        vectors_aV = widened(fetch_rows(vectors_GV, group_A[part]))
        products_A[part] = vectors_aV.mul_(fetch_rows(table_NV, rows_A[part])).sum(dim=1)
    return products_A


def _parts(rows: Tensor, width: int) -> list[slice]:
    """Consecutive entries of ``rows`` whose rows hold the elements of a part together; one at least."""
    size = max(1, PART_ELEMENTS // max(1, rows[:1].numel() * width))
    return [slice(start, start + size) for start in range(0, rows.shape[0], size)]
