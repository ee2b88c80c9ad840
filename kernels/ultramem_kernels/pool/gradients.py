"""``pool_backward`` and ``add_rows``: checks, the torch operators, and what runs where. Both add to what is there.

A CPU tensor takes the torch path and a CUDA tensor the Triton kernels, which are imported when the first one comes.
There is no falling back from one to the other.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ultramem_kernels import arguments
from ultramem_kernels.index_plan import IndexPlan
from ultramem_kernels.pool import torch_path
from ultramem_kernels.pool.checks import check_lookup
from ultramem_kernels.triton_kernels import triton_kernels

# Letters: N rows of the table, V value dimension, h score cores; A picks in all, G groups of them.


def pool_backward(
    grad_GV: Tensor,
    table_NV: Tensor,
    rows_A: Tensor,
    group_A: Tensor,
    scores_hA: Tensor,
    *,
    table_grad_NV: Tensor | None,
    scores_need_grad: bool,
    plan: IndexPlan | None = None,
) -> Tensor | None:
    """Gradients of weighted sums over groups. Those of a row are added in the order of its picks: the same bits each
    time.

    ``pool`` is such a sum: its group is ``token * E + block``.

    Args:
        grad_GV: Gradient of the sums.
        table_NV: As it was in the forward pass.
        rows_A: int32 or int64 rows of the picks, in [0, N).
        group_A: int64 group of each pick, in [0, G), in any order.
        scores_hA: Weight of each pick and core.
        table_grad_NV: The gradient of the table is added to it, in its type; None if the table needs none.
        scores_need_grad: Whether to compute theirs.
        plan: That of ``rows_A`` and N, for a CUDA device, which makes one if there is none. A CPU needs none.

    Returns:
        The gradient of the scores [h, A] in their type, or None.

    Raises:
        ArgumentError: Names the argument, and what was expected.
    """
    check_lookup(table_NV, rows_A, scores_hA, ("h", rows_A.shape[0]))
    arguments.need_shape("group_A", group_A, (rows_A.shape[0],))
    arguments.need_shape("grad_GV", grad_GV, ("G", table_NV.shape[1]))
    arguments.need_same_device({"table_NV": table_NV, "grad_GV": grad_GV, "group_A": group_A})
    if table_grad_NV is not None:
        arguments.need_shape("table_grad_NV", table_grad_NV, tuple(table_NV.shape))
        arguments.need_rows_together("table_grad_NV", table_grad_NV)
    grad = backward_operator(
        grad_GV.contiguous(),
        table_NV,
        rows_A,
        group_A,
        scores_hA,
        table_grad_NV,
        scores_need_grad,
        _tensors_of(plan, rows_A),
    )
    return grad if scores_need_grad else None


def add_rows(target_NV: Tensor, rows_A: Tensor, given_AV: Tensor, plan: IndexPlan | None = None) -> None:
    """``target[rows[a]] += given[a]``, those of a row in the order of their picks: the same bits each time.

    Args:
        target_NV: Added to, in its type; contiguous.
        rows_A: int32 or int64, in [0, N). Rows may repeat.
        given_AV: What to add; summed in fp32 on a CUDA device, in the type of ``target_NV`` on a CPU.
        plan: As for ``pool_backward``.

    Raises:
        ArgumentError: Names the argument, and what was expected.
    """
    arguments.need_dtype("target_NV", target_NV, arguments.FLOATS)
    arguments.need_shape("target_NV", target_NV, ("N", "V"))
    arguments.need_rows_together("target_NV", target_NV)
    arguments.need_shape("rows_A", rows_A, ("A",))
    arguments.need_dtype("rows_A", rows_A, arguments.INTEGERS)
    arguments.need_dtype("given_AV", given_AV, arguments.FLOATS)
    arguments.need_shape("given_AV", given_AV, (rows_A.shape[0], target_NV.shape[1]))
    arguments.need_same_device({"target_NV": target_NV, "rows_A": rows_A, "given_AV": given_AV})
    arguments.need_in_range("rows_A", rows_A, target_NV.shape[0])
    _add_rows(target_NV, rows_A, given_AV, _tensors_of(plan, rows_A))


def _tensors_of(plan: IndexPlan | None, rows_A: Tensor) -> list[Tensor]:
    """As operators take a plan: an operator has no arguments of other classes."""
    if plan is None:
        return []
    arguments.need_shape("plan.rows_A", plan.rows_A, (rows_A.shape[0],))
    arguments.need_same_device({"rows_A": rows_A, "plan.rows_A": plan.rows_A})
    return plan.tensors


# --- The operators ---------------------------------------------------------------------------------------------------


@torch.library.custom_op("ultramem::pool_backward", mutates_args=("table_grad_NV",), device_types="cpu")
def backward_operator(
    grad_GV: Tensor,
    table_NV: Tensor,
    rows_A: Tensor,
    group_A: Tensor,
    scores_hA: Tensor,
    table_grad_NV: Tensor | None,
    scores_need_grad: bool,
    plan: Sequence[Tensor],
) -> Tensor:
    """The gradient of the scores, empty if they need none."""
    scores_grad_hA = scores_hA.new_empty(scores_hA.shape if scores_need_grad else 0)
    torch_path.backward(
        grad_GV, table_NV, rows_A, group_A, scores_hA, table_grad_NV, scores_grad_hA if scores_need_grad else None
    )
    return scores_grad_hA


@backward_operator.register_kernel("cuda")
def _(
    grad_GV: Tensor,
    table_NV: Tensor,
    rows_A: Tensor,
    group_A: Tensor,
    scores_hA: Tensor,
    table_grad_NV: Tensor | None,
    scores_need_grad: bool,
    plan: Sequence[Tensor],
) -> Tensor:
    scores_grad_hA = scores_hA.new_empty(scores_hA.shape if scores_need_grad else 0)
    triton_kernels("pool", "triton_gradients").backward(
        grad_GV,
        table_NV,
        rows_A,
        group_A,
        scores_hA,
        table_grad_NV,
        scores_grad_hA if scores_need_grad else None,
        IndexPlan(*plan) if plan else None,
    )
    return scores_grad_hA


@backward_operator.register_fake
def _(
    grad_GV: Tensor,
    table_NV: Tensor,
    rows_A: Tensor,
    group_A: Tensor,
    scores_hA: Tensor,
    table_grad_NV: Tensor | None,
    scores_need_grad: bool,
    plan: Sequence[Tensor],
) -> Tensor:
    return scores_hA.new_empty(scores_hA.shape if scores_need_grad else 0)


@torch.library.custom_op("ultramem::add_rows", mutates_args=("target_NV",), device_types="cpu")
def _add_rows(target_NV: Tensor, rows_A: Tensor, given_AV: Tensor, plan: Sequence[Tensor]) -> None:
    target_NV.index_add_(0, rows_A, given_AV.to(target_NV.dtype))


@_add_rows.register_kernel("cuda")
def _(target_NV: Tensor, rows_A: Tensor, given_AV: Tensor, plan: Sequence[Tensor]) -> None:
    triton_kernels("pool", "triton_gradients").add_rows(target_NV, rows_A, given_AV, IndexPlan(*plan) if plan else None)


@_add_rows.register_fake
def _(target_NV: Tensor, rows_A: Tensor, given_AV: Tensor, plan: Sequence[Tensor]) -> None:
    return None
