"""``grid_top_m``: checks, and the torch operator. It has no gradient: it chooses."""

import torch
from torch import Tensor

from ultramem_kernels import arguments
from ultramem_kernels.selection import top_m
from ultramem_kernels.triton_kernels import triton_kernels

# Letters: as in reference.py.

PART_ELEMENTS = 2**20
"""Scores of the grid that are there at a time on a CPU: 4 MiB in fp32 stay in its cache."""


def grid_top_m(rows_THrc: Tensor, columns_THrc: Tensor, core_Hrr: Tensor, m: int) -> Tensor:
    """The places with the largest scores; see ``grid_top_m_reference``. The grid itself is never there as a whole.

    Args:
        rows_THrc: fp32 (fp64 on CPUs).
        columns_THrc: The same type.
        core_Hrr: The same type.
        m: 1 to c * c.

    Returns:
        int64 [T, H, m]. Which places is certain, ties go to the smaller. A CPU has them from the best down, a GPU in
        ascending order.

    Raises:
        ArgumentError: Names the argument, and what was expected.
    """
    arguments.need_dtype("rows_THrc", rows_THrc, (torch.float32, torch.float64))
    arguments.need_shape("rows_THrc", rows_THrc, ("T", "H", "r", "c"))
    arguments.need_dtype("columns_THrc", columns_THrc, (rows_THrc.dtype,))
    arguments.need_shape("columns_THrc", columns_THrc, tuple(rows_THrc.shape))
    _, heads, components, candidates = rows_THrc.shape
    arguments.need_dtype("core_Hrr", core_Hrr, (rows_THrc.dtype,))
    arguments.need_shape("core_Hrr", core_Hrr, (heads, components, components))
    arguments.need_same_device({"rows_THrc": rows_THrc, "columns_THrc": columns_THrc, "core_Hrr": core_Hrr})
    if not 1 <= m <= candidates**2:
        raise arguments.ArgumentError(f"m is {m}; expected 1 to {candidates**2}, the places of the grid")
    return _grid_top_m(rows_THrc, columns_THrc, core_Hrr, m)


@torch.library.custom_op("ultramem::grid_top_m", mutates_args=(), device_types="cpu")
def _grid_top_m(rows_THrc: Tensor, columns_THrc: Tensor, core_Hrr: Tensor, m: int) -> Tensor:
    tokens, heads, components, candidates = rows_THrc.shape
    found_THm = rows_THrc.new_empty((tokens, heads, m), dtype=torch.int64)
    size = max(1, PART_ELEMENTS // candidates**2)
    for head in range(heads):
        # [T, c, r] @ [r, r]: for each row and component of a column what it is multiplied with
        left_Tcr = rows_THrc[:, head].transpose(1, 2) @ core_Hrr[head]
        for part in (slice(start, start + size) for start in range(0, tokens, size)):
            columns_Trc = columns_THrc[part, head]
            grid_Tcc = left_Tcr[part, :, 0, None] * columns_Trc[:, 0, None]
            for component in range(1, components):
                grid_Tcc.addcmul_(left_Tcr[part, :, component, None], columns_Trc[:, component, None])
            found_THm[part, head] = top_m(grid_Tcc.flatten(1), m)
    return found_THm


@_grid_top_m.register_kernel("cuda")
def _(rows_THrc: Tensor, columns_THrc: Tensor, core_Hrr: Tensor, m: int) -> Tensor:
    return triton_kernels("grid_top_m").grid_top_m(rows_THrc, columns_THrc, core_Hrr, m)


@_grid_top_m.register_fake
def _(rows_THrc: Tensor, columns_THrc: Tensor, core_Hrr: Tensor, m: int) -> Tensor:
    return rows_THrc.new_empty((*rows_THrc.shape[:2], m), dtype=torch.int64)
