"""Gradients of every partition go straight into ``main_grad``, and no tensor of the size of the shard is made."""

# Letters: N rows of the table, V value dimension, T tokens of a rank.

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ultramem_megatron.config.memory import PartitionName
from ultramem_megatron.parallel.partition.base import TableShape
from ultramem_megatron.parallel.partition.registry import PARTITIONS
from ultramem_megatron.testing.distributed import run_distributed
from ultramem_megatron.testing.partition_cases import (
    DTYPES,
    RAGGED,
    VALUE_DIM,
    Case,
    MakeCase,
    make_lookup,
    make_products,
)
from ultramem_megatron.testing.partition_runs import assemble, build, cut, unsplit
from ultramem_megatron.testing.tolerances import assert_agrees


class LargestResult(TorchDispatchMode):
    """Elements of the largest tensor that came newly into being."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = function(*args, **(kwargs or {}))
        given = {x.untyped_storage()._cdata for x in args if isinstance(x, Tensor)}
        for x in result if isinstance(result, tuple | list) else [result]:
            if isinstance(x, Tensor) and x.untyped_storage()._cdata not in given:
                self.elements = max(self.elements, x.numel())
        return result


def accumulate_twice(name: PartitionName, case: Case) -> tuple[Tensor, int, int]:
    """Two micro-batches into one ``main_grad``, as DDP has it.

    Returns:
        main_grad, the bytes that the parameter's own gradient owns, the largest tensor made in the second backward.
    """
    rank = dist.get_rank()
    partition = build(name, case.shape, case.node_size)
    weight_nv = torch.nn.Parameter(cut(case.table_NV, partition.shard(rank)).clone())
    weight_nv.main_grad = torch.zeros(weight_nv.shape)  # type: ignore[attr-defined]
    owned_bytes, largest = 0, LargestResult()
    for micro_batch in range(2):
        weight_nv.grad_added_to_main_grad = False  # type: ignore[attr-defined]
        input_T = case.of_rank(case.input_G, rank).clone().requires_grad_()
        output_T = case.run(partition, weight_nv, input_T, rank)
        cotangent = case.of_rank(case.cotangent_G, rank)
        if micro_batch:
            with largest:
                output_T.backward(cotangent)
        else:
            output_T.backward(cotangent)
        assert weight_nv.grad_added_to_main_grad is True  # type: ignore[attr-defined]
        assert weight_nv.grad is not None and weight_nv.grad.shape == weight_nv.shape
        owned_bytes += weight_nv.grad.untyped_storage().size()
        weight_nv.grad = None  # as DDP's hook does
    return weight_nv.main_grad, owned_bytes, largest.elements  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def dispatch_modes() -> None:
    """torch imports its compiler, a second, when a dispatch mode is first entered: once here, not in every rank."""
    with LargestResult():
        torch.zeros(1)


@pytest.mark.parametrize("make", [make_lookup, make_products], ids=["lookup", "products"])
@pytest.mark.usefixtures("dispatch_modes")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("name", "ranks"),
    [(name, {PartitionName.REPLICATED: 1, PartitionName.GRID: 4}.get(name, 3)) for name in PARTITIONS],
)
def test_gradients_land_in_main_grad(name: PartitionName, ranks: int, dtype: torch.dtype, make: MakeCase) -> None:
    shape = TableShape(num_rows=509, value_dim=VALUE_DIM, blocks=4, cores=2)
    case = make(shape, RAGGED[ranks], dtype, torch.tensor([0, 100, 200, 300, 508]))
    results = run_distributed(ranks, accumulate_twice, name, case)
    main_grad_NV = assemble(name, shape, ranks, [main_grad for main_grad, _, _ in results])
    assert main_grad_NV.dtype is torch.float32
    assert_agrees(main_grad_NV, 2 * unsplit(case)[1], computed_in=dtype)
    assert main_grad_NV[1:100].count_nonzero() == 0, "a row that nobody picked"
    for _, owned_bytes, largest in results:
        assert owned_bytes == 0
        assert largest < 509 * VALUE_DIM / ranks / 2, "a gradient of the size of the shard was made"
