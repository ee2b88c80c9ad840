"""Read rows of a table, weigh them with the scores of their core, and sum them by block; and the gradients of that."""

from ultramem_kernels.pool.gradients import add_rows, pool_backward
from ultramem_kernels.pool.op import group_of, pool, pool_groups
from ultramem_kernels.pool.reference import pool_groups_reference, pool_reference
from ultramem_kernels.pool.torch_path import fetch_rows

__all__ = [
    "add_rows",
    "fetch_rows",
    "group_of",
    "pool",
    "pool_backward",
    "pool_groups",
    "pool_groups_reference",
    "pool_reference",
]
