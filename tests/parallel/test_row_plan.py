"""Every partition sums by the plans that it made ahead, as on a GPU: there by the kernels, here interpreted."""

import pytest
import torch
from torch import Tensor

from ultramem_kernels.index_plan import CHUNK_PICKS, IndexPlan
from ultramem_megatron.config.memory import PartitionName
from ultramem_megatron.parallel.partition import grouped, pooling, row_plan, rows
from ultramem_megatron.parallel.partition.base import TableShape
from ultramem_megatron.parallel.partition.registry import PARTITIONS
from ultramem_megatron.testing.distributed import run_distributed
from ultramem_megatron.testing.partition_cases import Case, MakeCase, make_lookup, make_products
from ultramem_megatron.testing.partition_runs import Found, assert_equals_unsplit, compute

SHAPE = TableShape(num_rows=13, value_dim=8, blocks=2, cores=2)
TOKENS = [5, 7]


def backward_by_plan(
    grad_GV: Tensor,
    table_NV: Tensor,
    rows_A: Tensor,
    group_A: Tensor,
    scores_hA: Tensor,
    *,
    table_grad_NV: Tensor | None,
    scores_need_grad: bool,
    plan: IndexPlan | None,
) -> Tensor | None:
    from ultramem_kernels.pool import triton_gradients

    assert plan is not None, "it was made ahead"
    scores_grad_hA = torch.full(scores_hA.shape, torch.nan) if scores_need_grad else None
    triton_gradients.backward(grad_GV, table_NV, rows_A, group_A, scores_hA, table_grad_NV, scores_grad_hA, plan)
    return scores_grad_hA


def add_by_plan(target_NV: Tensor, rows_A: Tensor, given_AV: Tensor, plan: IndexPlan | None) -> None:
    from ultramem_kernels.pool import triton_gradients

    assert plan is not None, "it was made ahead"
    triton_gradients.add_rows(target_NV, rows_A, given_AV, plan)


def compute_cases(named: list[tuple[PartitionName, Case]]) -> list[Found]:
    return [compute(name, case) for name, case in named]


@pytest.mark.slow
@pytest.mark.parametrize("make", [make_lookup, make_products], ids=["lookup", "products"])
def test_partitions_sum_by_their_plans(make: MakeCase, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    monkeypatch.setattr(row_plan, "sums_need_plan", lambda _: True)
    monkeypatch.setattr(pooling, "pool_backward", backward_by_plan)
    monkeypatch.setattr(grouped.kernels, "pool_backward", backward_by_plan)
    monkeypatch.setattr(rows.kernels, "add_rows", add_by_plan)
    few = torch.arange(SHAPE.num_rows)[::6]  # rows 0, 6, 12
    named = []
    for name in PARTITIONS:
        tokens = TOKENS if name is not PartitionName.REPLICATED else [sum(TOKENS)]
        for nodes in (1, 2) if name is PartitionName.GRID else (2,):
            case = make(SHAPE, tokens, torch.float32, few, picks=12, node_size=len(tokens) // nodes or 1)
            assert (case.rows_GK == 0).sum() > CHUNK_PICKS, "a run of several chunks"
            named.append((name, case))
    for ranks in (1, 2):
        those = [(name, case) for name, case in named if len(case.tokens) == ranks]
        for (name, case), *found in zip(those, *run_distributed(ranks, compute_cases, those), strict=True):
            assert_equals_unsplit(name, case, found)


def test_a_cpu_and_a_pass_without_gradients_need_no_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    some = torch.tensor([[2, 0], [2, 2]], dtype=torch.int32)
    assert row_plan.plan_sums(some, 3) is None and row_plan.plan_gradients(some, 3) is None
    assert row_plan.taken(None) is None
    monkeypatch.setattr(row_plan, "sums_need_plan", lambda _: True)
    with torch.no_grad():
        assert row_plan.plan_gradients(some, 3) is None
    plan = row_plan.plan_gradients(some, 3)
    assert plan is not None and plan.take().rows_A.tolist() == [0, 2, 2, 2]
