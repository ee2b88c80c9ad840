"""``training.deterministic``: every operation of a step has an order of its own, and what has none is refused."""

from types import ModuleType

import pytest
import torch

from ultramem_megatron.parallel.process import fix_orders_of_sums
from ultramem_megatron.testing.budget import budget
from ultramem_megatron.testing.distributed import run_distributed
from ultramem_megatron.testing.layouts import Layout, train_layout
from ultramem_megatron.testing.tiny import tiny_config
from ultramem_megatron.testing.tolerances import LOSS_CURVE_RELATIVE

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="forked ranks need a machine without CUDA")


@pytest.mark.slow
@pytest.mark.parametrize("partition", ["number_wise", "number_wise_pooled", "dimension_wise"])
def test_a_run_repeats_its_bits(megatron: ModuleType, partition: str) -> None:
    layout = Layout(partition, 2, (f"memory.partition={partition}", "memory.parallel_size=2"))
    steps = f"training.steps={budget(3, 8)}"
    curve = train_layout(tiny_config(steps, "training.deterministic=true"), layout)
    assert train_layout(tiny_config(steps, "training.deterministic=true"), layout) == curve
    assert max(curve.largest_difference(train_layout(tiny_config(steps), layout))) < LOSS_CURVE_RELATIVE


def test_what_has_no_order_is_refused() -> None:
    def use() -> None:
        fix_orders_of_sums()
        assert not torch.utils.deterministic.fill_uninitialized_memory
        torch.zeros(3).put_(torch.tensor([1, 1]), torch.ones(2))

    with pytest.raises(RuntimeError, match="put_ does not have a deterministic implementation"):
        run_distributed(1, use)
