"""Stage 2 of retrieval: of the grid of candidate rows and columns the m slots whose score is largest."""

from ultramem_kernels.grid_top_m.op import grid_top_m
from ultramem_kernels.grid_top_m.reference import grid_top_m_reference

__all__ = ["grid_top_m", "grid_top_m_reference"]
