"""No training step allocates a tensor of the size of a value table: not in Adam, clipping, norms or the exchange."""

from types import ModuleType

import pytest
import torch
import torch.distributed as dist

from ultramem_kernels.table_update import torch_path
from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.testing.distributed import run_distributed
from ultramem_megatron.testing.peak_memory import largest_allocation
from ultramem_megatron.testing.tiny import tiny_config

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="forked ranks need a machine without CUDA")


def largest_of_a_step(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """Bytes of the largest block that a step allocates, and of a table's shard."""
    from ultramem_megatron.data.dataset import open_training_data
    from ultramem_megatron.parallel import cpu_seam, host_exchange
    from ultramem_megatron.planning.choose import choose_plan
    from ultramem_megatron.planning.cluster import local_cluster
    from ultramem_megatron.training.setup import build_run_groups, build_train_state
    from ultramem_megatron.training.step import train_step

    for module, name in (
        (torch_path, "PART_ELEMENTS"),
        (cpu_seam, "NORM_BLOCK_ELEMENTS"),
        (host_exchange, "EXCHANGED_ELEMENTS"),
    ):
        monkeypatch.setattr(module, name, 2**15)
    plan = choose_plan(config, local_cluster(dist.get_world_size()))
    state = build_train_state(config, plan, build_run_groups(config, plan, torch.device("cpu")))
    batches = state.batches(open_training_data(config))
    train_step(state, next(batches))  # makes moments, and the placeholder of the table's gradient
    largest = largest_allocation(lambda: train_step(state, next(batches)))
    (layer,) = state.chunks[0].memory_layers
    return largest, min(table.nbytes for name, table in layer.named_parameters() if name.endswith("table.weight"))


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(("training.precision=fp32",), id="fp32"),
        pytest.param(("training.precision=bf16", "optimizer.table_update=lazy"), id="bf16 lazy"),
        pytest.param(
            ("memory.variant=ultramem_v2", "memory.pre_value_dim=16", "memory.key_layout=query_per_rank"), id="v2"
        ),
    ],
)
def test_a_step_allocates_no_table(
    megatron: ModuleType, monkeypatch: pytest.MonkeyPatch, settings: tuple[str, ...]
) -> None:
    """A table of 90,000 x 16 beside a model of 20,000 parameters; gradients are clipped hard."""
    config = tiny_config("memory.keys_per_side=300", "optimizer.clip_gradient=1e-4", *settings)
    ((largest, table),) = run_distributed(1, largest_of_a_step, config, monkeypatch)
    assert 0 < largest < table // 2
