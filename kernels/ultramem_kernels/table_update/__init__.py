"""One step of AdamW on a value table: master, moments, the narrow copy, and the gradient cleared, in one pass."""

from ultramem_kernels.table_update.op import AdamW, update_table
from ultramem_kernels.table_update.reference import update_table_reference

__all__ = ["AdamW", "update_table", "update_table_reference"]
