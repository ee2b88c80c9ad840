"""Inner products of rows with the vectors of those who read them: UltraMemV2's pre-values. See ``pool`` for sums."""

from ultramem_kernels.products.op import multiply_groups, multiply_rows
from ultramem_kernels.products.reference import multiply_groups_reference, multiply_rows_reference

__all__ = ["multiply_groups", "multiply_groups_reference", "multiply_rows", "multiply_rows_reference"]
