"""Every entry of the CPU seam is needed, and enough: megatron-core's own code fails without it and works with it.

A probe that no longer fails without its entry says that megatron-core has mended itself: take the entry out.
"""

import gc
import logging
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType, ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from ultramem_megatron.parallel import cpu_seam, mcore_repairs, patching
from ultramem_megatron.testing.distributed import run_distributed
from ultramem_megatron.testing.peak_memory import PeakMemory, largest_allocation

ALL = (*cpu_seam.ENTRIES, *mcore_repairs.REPAIRS)
NO_CUDA = "CUDA|NVIDIA"  # "not compiled with CUDA", or "no NVIDIA driver" in a build with CUDA

without_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="the seam is for machines without CUDA")


@dataclass(frozen=True)
class Probe:
    """Runs code of megatron-core."""

    check: Callable[[], None]
    fails_with: str
    """Words of the error that comes without the entry."""
    world_size: int = 1


def small_config(**changes: Any) -> Any:
    from megatron.core.transformer.transformer_config import TransformerConfig

    settings = {"num_layers": 1, "hidden_size": 8, "num_attention_heads": 1, "use_cpu_initialization": True}
    return TransformerConfig(**(settings | changes))


def small_model(dtype: torch.dtype = torch.float32) -> Any:
    """Two parameters in megatron-core's DDP, with gradients."""
    from megatron.core import parallel_state
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig

    if not parallel_state.is_initialized():
        parallel_state.initialize_model_parallel()
    config = small_config(bf16=dtype is torch.bfloat16, params_dtype=dtype)
    ddp_config = DistributedDataParallelConfig(use_distributed_optimizer=True, grad_reduce_in_fp32=True)
    model = DistributedDataParallel(config, ddp_config, nn.Linear(8, 8, dtype=dtype))
    model(torch.ones(2, 8, dtype=dtype)).sum().backward()
    model.finish_grad_sync()
    return model


def small_optimizer(model: Any, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer

    settings = {"optimizer": "adam", "lr": 0.1, "bf16": dtype is torch.bfloat16, "use_distributed_optimizer": True}
    return get_megatron_optimizer(OptimizerConfig(**(settings | changes)), [model])


def expert_layer(dispatcher: str) -> Any:
    from megatron.core import parallel_state
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
    from megatron.core.transformer.spec_utils import build_module

    if not parallel_state.is_initialized():
        parallel_state.initialize_model_parallel(expert_model_parallel_size=dist.get_world_size())
        model_parallel_cuda_manual_seed(1)
    config = small_config(
        num_moe_experts=2,
        moe_router_topk=1,
        moe_router_pre_softmax=True,
        moe_token_dispatcher_type=dispatcher,
        expert_model_parallel_size=dist.get_world_size(),
        add_bias_linear=False,
    )
    spec = get_gpt_layer_local_spec(num_experts=2, moe_grouped_gemm=False).submodules.mlp
    torch.manual_seed(1)
    return build_module(spec, config=config)


class Chunk(nn.Linear):
    """What the schedules ask of a model."""

    def __init__(self, in_features: int, out_features: int) -> None:
        from megatron.core.enums import ModelType

        super().__init__(in_features, out_features)
        self.model_type = ModelType.encoder_or_decoder
        self.config = small_config(enable_autocast=True, autocast_dtype=torch.bfloat16)

    def set_input_tensor(self, tensors: list[torch.Tensor | None]) -> None:
        assert tensors == [None], "a first stage gets no input from another"


def check_buffers() -> None:
    model = small_model()
    assert model.module.weight.main_grad.eq(2).all()


def check_restore_to_device() -> None:
    optimizer = small_optimizer(small_model())
    before = [parameter.detach().clone() for parameter in optimizer.get_parameters()]
    optimizer.chained_optimizers[0].restore_from_cpu()
    torch.testing.assert_close(optimizer.get_parameters(), before)


def check_alltoall_dispatcher() -> None:
    hidden = torch.randn(4, 1, 8)
    expected, _ = expert_layer("allgather")(hidden)
    found, _ = expert_layer("alltoall")(hidden)
    torch.testing.assert_close(found, expected)


def check_random_tracker() -> None:
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.random import get_cuda_rng_tracker, model_parallel_cuda_manual_seed

    parallel_state.initialize_model_parallel()
    drawn = []
    for _ in range(2):
        model_parallel_cuda_manual_seed(1, force_reset_rng=True)
        outside = [torch.rand(1).item()]
        with get_cuda_rng_tracker().fork():
            inside = [torch.rand(1).item()]
        outside.append(torch.rand(1).item())
        with get_cuda_rng_tracker().fork():
            inside.append(torch.rand(1).item())
        drawn.append((outside, inside))
    assert drawn[0] == drawn[1], "the same seed must give the same numbers"
    assert len({*outside, *inside}) == 4, "the two streams must both move, apart from each other"


def check_no_warning() -> None:
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("megatron.core.tensor_parallel.random").addHandler(handler)
    check_random_tracker()
    assert not messages, messages[0]


def check_clipping() -> None:
    from megatron.core.optimizer import clip_grads

    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([0.0, 4.0])
    parameter.tensor_model_parallel = True
    for norm_type in (2.0, float("inf")):
        assert clip_grads.get_grad_norm_fp32([parameter.grad], norm_type) == 4.0
    assert clip_grads.count_zeros_fp32([parameter], dist.group.WORLD) == 1.0
    clip_grads.clip_grad_by_total_norm_fp32([parameter], max_norm=1.0, total_norm=4.0)
    torch.testing.assert_close(parameter.grad, torch.tensor([0.0, 1.0]))


def check_norm_precision() -> None:
    from megatron.core.optimizer import clip_grads

    gradient = torch.randn(1 << 20) * 1e-3
    exact = gradient.double().norm().item()
    assert abs(clip_grads.get_grad_norm_fp32([gradient], 2.0) / exact - 1) < 1e-6


def check_loss_scale() -> None:
    from megatron.core.optimizer.grad_scaler import DynamicGradScaler

    scaler = DynamicGradScaler(4.0, 1.0, 2.0, 0.5, growth_interval=1, hysteresis=1)
    scaler.update(found_inf=True)
    assert scaler.scale.item() == 2.0
    assert small_optimizer(small_model(), use_distributed_optimizer=False).get_loss_scale().item() == 1.0


def check_parameter_types() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        for distributed in (True, False):
            optimizer = small_optimizer(small_model(dtype), dtype, use_distributed_optimizer=distributed)
            assert {parameter.dtype for parameter in optimizer.get_parameters()} == {torch.float32}
            assert sum(parameter.numel() for parameter in optimizer.get_parameters()) == 72


def check_schedule() -> None:
    from megatron.core import parallel_state
    from megatron.core.pipeline_parallel.schedules import forward_backward_no_pipelining

    parallel_state.initialize_model_parallel()
    model = Chunk(8, 1)

    def forward(batches: Any, model: nn.Module) -> tuple[torch.Tensor, Callable[[torch.Tensor], Any]]:
        output = model(next(batches))
        return output, lambda output: (output.float().mean(), {"dtype": output.dtype})

    losses = forward_backward_no_pipelining(
        forward_step_func=forward,
        data_iterator=iter([torch.ones(2, 8)] * 2),
        model=model,
        num_microbatches=2,
        seq_length=2,
        micro_batch_size=1,
        forward_only=False,
    )
    assert [loss["dtype"] for loss in losses] == [torch.bfloat16] * 2
    torch.testing.assert_close(model.weight.grad, torch.ones(1, 8))


def check_masks() -> None:
    from megatron.core.transformer import utils

    assert utils.get_default_causal_mask(2).tolist() == [[False, True], [False, False]]
    assert utils.get_sliding_window_causal_mask(2, 2, (0, 0)).tolist() == [[False, True], [True, False]]


def check_data_broadcast() -> None:
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel import broadcast_data

    parallel_state.initialize_model_parallel(tensor_model_parallel_size=2)
    tokens = torch.arange(6).view(2, 3)
    data = {"tokens": tokens} if dist.get_rank() == 0 else None
    assert torch.equal(broadcast_data(["tokens"], data, torch.int64)["tokens"], tokens)


def check_split_transfer() -> None:
    from megatron.core.tensor_parallel import all_to_all
    from megatron.core.transformer.moe import token_dispatcher

    splits = token_dispatcher.maybe_move_tensor_to_cpu(torch.tensor([1, 2]), as_numpy=True)
    received = token_dispatcher.maybe_move_tensor_to_cpu(torch.tensor([dist.get_rank() + 1] * 2), as_numpy=True)
    sent = torch.arange(3.0) + 10 * dist.get_rank()
    found = all_to_all(dist.group.WORLD, sent, received, splits)
    assert isinstance(splits, np.ndarray)
    assert found.tolist() == [[0, 10], [1, 2, 11, 12]][dist.get_rank()]


def check_expert_metrics() -> None:
    from megatron.core import parallel_state
    from megatron.core.transformer.moe.moe_utils import track_moe_metrics

    parallel_state.initialize_model_parallel()
    totals: dict[str, torch.Tensor] = {}
    track_moe_metrics(1.0, 0, None, total_loss_dict=totals, force_initialize=True, track_names=["aux"], num_layers=2)
    assert totals["aux"].item() == 0.0


def check_checkpoint_exchange() -> None:
    from megatron.core import dist_checkpointing
    from megatron.core.dist_checkpointing import ShardedTensor
    from megatron.core.dist_checkpointing.serialization import get_default_load_sharded_strategy
    from megatron.core.dist_checkpointing.strategies.fully_parallel import FullyParallelLoadStrategyWrapper

    def state(value: float) -> dict[str, ShardedTensor]:
        tensors = {name: torch.full((4,), value) for name in ("first", "second", "third")}
        return {
            name: ShardedTensor.from_rank_offsets(name, tensor, replica_id=dist.get_rank())
            for name, tensor in tensors.items()
        }

    folder = [tempfile.mkdtemp()]
    dist.broadcast_object_list(folder)
    dist_checkpointing.save(state(3.0), folder[0])
    strategy = FullyParallelLoadStrategyWrapper(get_default_load_sharded_strategy(folder[0]))
    loaded = dist_checkpointing.load(state(0.0), folder[0], strategy)
    assert all(tensor.eq(3.0).all() for tensor in loaded.values())


def check_metadata_reuse() -> None:
    from megatron.core.dist_checkpointing.strategies.state_dict_saver import verify_global_md_reuse
    from torch.distributed.checkpoint.planner import SavePlan
    from torch.distributed.checkpoint.utils import _DistWrapper

    before = [SavePlan([], planner_data=rank) for rank in range(2)]
    wrapper = _DistWrapper(None, use_dist=True, coordinator_rank=0)
    for second_plan, reuse in ((1, True), (5, False)):
        now = SavePlan([], planner_data=(0, second_plan)[dist.get_rank()])
        assert verify_global_md_reuse(before, now, dist.get_rank(), wrapper) is reuse


def check_rerun_verdict() -> None:
    from megatron.core.rerun_state_machine import RerunStateMachine

    mine = dist.get_rank() == 1
    assert RerunStateMachine._reduce_any(SimpleNamespace(), [mine, False]) == (True, False)
    assert RerunStateMachine._reduce_any(SimpleNamespace(), mine) is True


def check_router() -> None:
    from megatron.core.transformer.moe.moe_utils import router_gating_linear

    hidden = torch.ones(2, 3, requires_grad=True)
    router_gating_linear(hidden, torch.full((4, 3), 2.0), None, torch.float32).sum().backward()
    torch.testing.assert_close(hidden.grad, torch.full((2, 3), 8.0))


def check_adam_step() -> None:
    model = small_model()
    optimizer = small_optimizer(model).chained_optimizers[0]
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    saved_without_step = {"param": torch.ones(8), "exp_avg": torch.ones(8), "exp_avg_sq": torch.ones(8)}
    with torch.no_grad():
        optimizer._set_main_param_and_optimizer_states(model.module.bias, saved_without_step)
    optimizer.step()
    assert model.module.bias.lt(1).all(), "the loaded value must have been used"
    assert [state["step"].item() for state in optimizer.optimizer.state.values()] == [2.0, 2.0]


def check_scaling_in_place() -> None:
    from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32

    parameter = nn.Parameter(torch.zeros(1000, 1000))
    parameter.grad = torch.full_like(parameter, 3.0)
    largest = largest_allocation(lambda: clip_grad_by_total_norm_fp32([parameter], max_norm=1.0, total_norm=3.0))
    torch.testing.assert_close(parameter.grad, torch.ones(1000, 1000), rtol=1e-6, atol=0)
    assert largest < parameter.nbytes, "a copy was made"


def check_exchange_in_blocks() -> None:
    from megatron.core import parallel_state
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig

    from ultramem_megatron.parallel import host_exchange

    parallel_state.initialize_model_parallel()
    rank = dist.get_rank()
    host_exchange.EXCHANGED_ELEMENTS //= 4  # a fork: no other test sees it
    module = nn.Linear(2048, 2049, bias=False)  # 16 MiB; several blocks are exchanged, the last one smaller
    ddp_config = DistributedDataParallelConfig(use_distributed_optimizer=True, average_in_collective=False)
    model = DistributedDataParallel(small_config(), ddp_config, module)
    (buffer,) = model.buffers
    own = buffer.grad_data.numel() // 2 * rank
    half = slice(own, own + buffer.grad_data.numel() // 2)
    buffer.grad_data.copy_(torch.arange(buffer.grad_data.numel()) % 1000 + rank)
    buffer.param_data.fill_(-1.0)
    buffer.param_data[half] = float(rank)
    peak = PeakMemory(torch.device("cpu"))
    model.start_grad_sync()
    model.start_param_sync()
    copied = peak.bytes()
    summed = torch.arange(buffer.grad_data.numel()) % 1000 + 0.5  # the mean of two ranks
    assert torch.equal(buffer.grad_data[half], summed[half])
    assert buffer.param_data.view(2, -1).eq(torch.tensor([[0.0], [1.0]])).all()
    # two blocks of 4 MiB at a time, and what the allocator rounds up; the whole would be all of it
    assert copied < buffer.grad_data.nbytes * 3 // 4, f"{copied} bytes copied"


def check_state_of_buckets() -> None:
    """Three buckets, each padded: what is described of a parameter is what the optimizer holds of it."""
    from megatron.core import parallel_state
    from megatron.core.dist_checkpointing.mapping import ShardedTensor
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig

    from ultramem_megatron.checkpoint.held_state import altered_states

    parallel_state.initialize_model_parallel()
    module = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 3), nn.Linear(3, 5))
    module[1].weight.shared_embedding = True  # has a bucket of its own
    ddp_config = DistributedDataParallelConfig(use_distributed_optimizer=True, average_in_collective=False)
    model = DistributedDataParallel(small_config(), ddp_config, module)
    assert len(model.buffers[0].buckets) == 3
    model(torch.randn(2, 8)).square().sum().backward()
    model.finish_grad_sync()
    (optimizer,) = small_optimizer(model).chained_optimizers
    optimizer.step()
    described = {n: ShardedTensor.from_rank_offsets(n, p) for n, p in module.named_parameters()}
    state = optimizer.sharded_param_state_fully_reshardable(described, metadata={})
    altered = altered_states([optimizer], [{"param_state": state}])
    assert not altered, altered


PROBES = {
    "current device": Probe(check_buffers, NO_CUDA),
    "Tensor.cuda": Probe(check_restore_to_device, NO_CUDA),
    "streams": Probe(check_alltoall_dispatcher, f"dummy base class|{NO_CUDA}"),
    "random generator": Probe(check_random_tracker, NO_CUDA),
    "random generator warning": Probe(check_no_warning, "CPU RNG state changed"),
    "gradient clipping": Probe(check_clipping, NO_CUDA),
    "gradient norm": Probe(check_norm_precision, NO_CUDA),
    "buffer exchange": Probe(check_exchange_in_blocks, "bytes copied", world_size=2),
    "loss scale": Probe(check_loss_scale, NO_CUDA),
    "parameter types": Probe(check_parameter_types, r"Received torch\.FloatTensor"),
    "schedules": Probe(check_schedule, NO_CUDA),
    "attention masks": Probe(check_masks, NO_CUDA),
    "data broadcast": Probe(check_data_broadcast, NO_CUDA, world_size=2),
    "expert splits": Probe(check_split_transfer, "incompatible function arguments", world_size=2),
    "expert metrics": Probe(check_expert_metrics, NO_CUDA),
    "checkpoint exchange": Probe(check_checkpoint_exchange, NO_CUDA, world_size=2),
    "checkpoint metadata": Probe(check_metadata_reuse, NO_CUDA, world_size=2),
    "rerun verdict": Probe(check_rerun_verdict, NO_CUDA, world_size=2),
    "router gemm": Probe(check_router, "te_general_gemm"),
    "Adam step": Probe(check_adam_step, "step"),
    "gradient scale": Probe(check_scaling_in_place, "a copy was made"),
    "places of buckets": Probe(check_state_of_buckets, "is not what the optimizer holds", world_size=2),
}


def install_all() -> None:
    cpu_seam.install()
    mcore_repairs.install()


def run_without(name: str, folder: Path) -> None:
    """The probe of an entry, with all others in place."""
    tempfile.tempdir = str(folder)
    patching.uninstall()
    for entry in ALL:
        if entry.name != name:
            entry.apply()
    PROBES[name].check()


def run_with(name: str, folder: Path) -> None:
    tempfile.tempdir = str(folder)
    patching.uninstall()
    install_all()
    PROBES[name].check()


def check_shared_step() -> None:
    """The fault that the entry "Adam step" mends: it raises nothing, so it is shown by its number."""
    patching.uninstall()
    for entry in cpu_seam.ENTRIES:
        entry.apply()
    optimizer = small_optimizer(small_model()).chained_optimizers[0]
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.step()
    assert [state["step"].item() for state in optimizer.optimizer.state.values()] == [3.0, 3.0]


def torch_state() -> dict[str, Any]:
    """What the seam could leave behind in torch."""
    names = {f"torch.cuda.{name}": value for name, value in vars(torch.cuda).items() if callable(value)}
    tensor = {f"torch.Tensor.{name}": value for name, value in vars(torch.Tensor).items() if callable(value)}
    return names | tensor | {"torch.cuda.random.get_rng_state": torch.cuda.random.get_rng_state}


def megatron_codes() -> dict[str, Any]:
    """The code of every function and method that megatron-core has loaded."""
    gc.unfreeze()  # frozen objects are not among those that one gets
    functions = [item for item in gc.get_objects() if type(item) is FunctionType]  # isinstance asks dead weak proxies
    return {
        f"{item.__module__}.{item.__qualname__}.{item.__code__.co_firstlineno}": item.__code__
        for item in functions
        if (item.__module__ or "").startswith("megatron.core")
    }


def check_install_twice_and_uninstall() -> None:
    patching.uninstall()
    torch_before, codes_before = torch_state(), megatron_codes()
    install_all()
    torch_installed, codes_installed = torch_state(), megatron_codes()
    install_all()
    assert torch_state() == torch_installed
    assert megatron_codes() == codes_installed
    assert torch_installed != torch_before
    assert sum(codes_installed[name] != code for name, code in codes_before.items()) >= 20
    patching.uninstall()
    assert torch_state() == torch_before
    assert {name: code for name, code in megatron_codes().items() if name in codes_before} == codes_before


def test_every_entry_has_a_probe_and_a_reason() -> None:
    assert [entry.name for entry in ALL] == list(PROBES)
    assert all(entry.why and entry.instead for entry in ALL)


@without_cuda
@pytest.mark.parametrize("name", PROBES)
def test_megatron_fails_without_the_entry(megatron: ModuleType, tmp_path: Path, name: str) -> None:
    with pytest.raises(Exception) as failure:
        run_distributed(PROBES[name].world_size, run_without, name, tmp_path)
    assert re.search(PROBES[name].fails_with, str(failure.value))  # match= would search the traceback in the notes too


@without_cuda
@pytest.mark.parametrize("name", PROBES)
def test_megatron_works_with_the_seam(megatron: ModuleType, tmp_path: Path, name: str) -> None:
    run_distributed(PROBES[name].world_size, run_with, name, tmp_path)


@without_cuda
def test_megatron_shares_one_adam_step_after_loading(megatron: ModuleType) -> None:
    run_distributed(1, check_shared_step)


@without_cuda
def test_install_is_idempotent_and_uninstall_leaves_no_trace(megatron: ModuleType) -> None:
    run_distributed(1, check_install_twice_and_uninstall)


@without_cuda
def test_torch_outside_of_megatron_is_untouched(megatron: ModuleType) -> None:
    with pytest.raises(AssertionError, match="CUDA"):
        torch.zeros(1, device="cuda")
    assert torch.zeros(1).type() == "torch.FloatTensor"
    assert not torch.overrides._get_current_function_mode_stack()


def test_refuses_a_machine_with_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(AssertionError, match="must not be installed where CUDA"):
        cpu_seam.install()


def test_an_outdated_constant_is_noticed() -> None:
    with pytest.raises(AssertionError, match="names no CUDA; the seam is out of date"):
        cpu_seam._exchange(test_every_entry_has_a_probe_and_a_reason)
