"""Stage 1 of retrieval: of all row (and column) keys the m whose projected score is largest."""

from ultramem_kernels.candidates.op import best_candidates
from ultramem_kernels.candidates.reference import best_candidates_reference
from ultramem_kernels.candidates.torch_path import best_of_components

__all__ = ["best_candidates", "best_candidates_reference", "best_of_components"]
