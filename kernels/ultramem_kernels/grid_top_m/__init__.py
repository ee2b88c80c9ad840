"""Stage 2 of retrieval: of the grid of candidate rows and columns the m slots whose score is largest."""

from ultramem_kernels.grid_top_m.addresses import Addresses
from ultramem_kernels.grid_top_m.op import grid_top_m
from ultramem_kernels.grid_top_m.reference import best_slots_reference, grid_top_m_reference
from ultramem_kernels.grid_top_m.slots import best_slots

__all__ = ["Addresses", "best_slots", "best_slots_reference", "grid_top_m", "grid_top_m_reference"]
