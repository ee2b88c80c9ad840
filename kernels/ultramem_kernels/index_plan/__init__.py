"""Which picks name the same row: sorted, cut into runs, and these into chunks of a fixed length."""

from ultramem_kernels.index_plan.plan import CHUNK_PICKS, IndexPlan, make_plan
from ultramem_kernels.index_plan.runs import SortedPicks, number_distinct, sort_picks

__all__ = ["CHUNK_PICKS", "IndexPlan", "SortedPicks", "make_plan", "number_distinct", "sort_picks"]
