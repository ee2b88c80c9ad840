"""Which parameter gets which rate and decay, and which ranks share its optimizer state."""

from types import ModuleType
from typing import Any

import pytest
import torch
import torch.distributed as dist

from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.testing.distributed import run_distributed
from ultramem_megatron.testing.tiny import EXPERTS, tiny_config

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="forked ranks need a machine without CUDA")


def build(config: RunConfig) -> Any:
    from ultramem_megatron.planning.choose import choose_plan
    from ultramem_megatron.planning.cluster import local_cluster
    from ultramem_megatron.training.setup import build_run_groups, build_train_state

    plan = choose_plan(config, local_cluster(dist.get_world_size()))
    return build_train_state(config, plan, build_run_groups(config, plan, torch.device("cpu")))


def inspect_optimizer(config: RunConfig) -> dict[str, Any]:
    """By parameter name: whether it has the tables' rate, its decay, type of master weights and of the gradient."""
    from ultramem_megatron.optim.schedule import VALUE_RATE

    state = build(config)
    names = {parameter: name for chunk in state.chunks for name, parameter in chunk.named_parameters()}
    seen: dict[str, Any] = {}
    for part in state.optimizer.chained_optimizers:
        for parameter, (index, _) in part.model_param_group_index_map.items():
            group = part.optimizer.param_groups[index]
            masters = {tensor.dtype for tensor in group["params"]}
            seen[names[parameter]] = (
                group.get(VALUE_RATE),
                group["weight_decay"] * group.get("wd_mult", 1),
                masters,
                parameter.main_grad.dtype,
                parameter.dtype,
                parameter.dim(),
            )
    assert set(seen) <= set(names.values())
    return seen


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_rates_decay_and_types(megatron: ModuleType, precision: str) -> None:
    ranks = run_distributed(
        2,
        inspect_optimizer,
        tiny_config(f"training.precision={precision}", "memory.partition=number_wise", "memory.parallel_size=2"),
    )
    seen = ranks[0] | ranks[1]  # the distributed optimizer gives a rank the parameters of its own range
    tables = {name for name in seen if name.endswith("table.weight")}
    assert len(tables) == 1
    for name, (multiplier, decay, masters, gradient, weight, dimensions) in seen.items():
        assert multiplier == (10.0 if name in tables else None), name
        assert decay == pytest.approx(0.0 if dimensions == 1 else 0.1), name
        assert masters == {torch.float32}, name
        assert gradient is torch.float32, name
        assert weight is (torch.float32 if precision == "fp32" else torch.bfloat16), name
    assert {dimensions for *_, dimensions in seen.values()} >= {1, 2}


def expert_state(config: RunConfig) -> tuple[int, int]:
    """Elements of optimizer state on this rank: of experts, of all else."""
    state = build(config)
    names = {parameter: name for chunk in state.chunks for name, parameter in chunk.named_parameters()}
    counts = [0, 0]
    for part in state.optimizer.chained_optimizers:
        for parameter, held in part.model_param_gbuf_map.items():
            counts["local_experts" not in names[parameter]] += held_elements(part, parameter, held)
    return counts[0], counts[1]


def held_elements(part: Any, parameter: Any, place: tuple[int, Any, int]) -> int:
    """Elements of ``parameter`` in this rank's range of the buffer at ``place``."""
    buffer, dtype, bucket = place
    held = part.gbuf_ranges[buffer][dtype][bucket]["param_map"][parameter]["param"]
    return int(held.size)


@pytest.mark.parametrize("expert", [1, 2])
def test_state_of_experts_is_held_once(megatron: ModuleType, expert: int) -> None:
    shares = run_distributed(2, expert_state, tiny_config(*EXPERTS, f"parallelism.expert={expert}"))
    ((experts, rest),) = run_distributed(1, expert_state, tiny_config(*EXPERTS))
    assert experts == 2 * 4 * 2 * 32 * 48
    assert [sum(parts) for parts in zip(*shares, strict=True)] == [experts, rest]


def share_of_state(config: RunConfig) -> tuple[int, int]:
    """Elements of optimizer state on this rank: dense parameters, value tables."""
    state = build(config)
    from ultramem_megatron.optim.schedule import VALUE_RATE

    counts = [0, 0]
    for part in state.optimizer.chained_optimizers:
        for group in part.optimizer.param_groups:
            counts[VALUE_RATE in group] += sum(tensor.numel() for tensor in group["params"])
    return counts[0], counts[1]


@pytest.mark.parametrize("size", [1, 2])
def test_state_is_held_once_over_all_ranks(megatron: ModuleType, size: int) -> None:
    """Dense state is split over data parallel; that of tables over the copies of a shard: no element is held twice."""
    shares = run_distributed(2, share_of_state, tiny_config(f"memory.parallel_size={size}"))
    whole = run_distributed(1, share_of_state, tiny_config())[0]
    assert sum(tables for _, tables in shares) == whole[1] == 16 * 16 * 16
    assert sum(dense for dense, _ in shares) == whole[0]


def step_tables(config: RunConfig) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The table before and after a step with a gradient of normal numbers, and where torch's AdamW would have it."""
    from ultramem_megatron.optim.schedule import VALUE_RATE

    state = build(config)
    state.schedule.begin_step(3)
    ((table,),) = (layer.tables for layer in state.chunks[0].memory_layers)
    before = table.weight.detach().clone()
    for chunk in state.ddp:
        chunk.zero_grad_buffer()
        for parameter in chunk.parameters():
            parameter.main_grad.normal_(generator=torch.Generator().manual_seed(7))
    oracle = torch.nn.Parameter(before.float())
    oracle.grad = table.weight.main_grad.clone()
    (group,) = (g for part in state.optimizer.chained_optimizers for g in part.param_groups if VALUE_RATE in g)
    rates = {"lr": group["lr"], "betas": group["betas"], "eps": group["eps"], "weight_decay": group["weight_decay"]}
    torch.optim.AdamW([oracle], **rates).step()
    state.optimizer.step()
    return before, table.weight.detach().clone(), oracle.detach()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_leaves_the_rounded_master_weights_of_all_copies(megatron: ModuleType, precision: str) -> None:
    """Each rank's optimizer writes its range of the weights; megatron-core gathers the ranges."""
    config = tiny_config(f"training.precision={precision}", "memory.parallel_size=1", "optimizer.clip_gradient=0")
    (before, here, expected), (_, there, _) = run_distributed(2, step_tables, config)
    assert torch.equal(here, there)
    assert not torch.equal(here, before)
    tolerance = 1e-6 if precision == "fp32" else 2**-8  # between two bf16 numbers either is near
    torch.testing.assert_close(here.float(), expected, rtol=tolerance, atol=tolerance * 1e-3)
