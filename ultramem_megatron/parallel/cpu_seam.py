"""Lets megatron-core 0.16.1 run on CPU tensors and gloo. Never imported where there is a CUDA device.

megatron-core names CUDA in well over a hundred places. The seam is a table, ``ENTRIES``: each entry says what
megatron-core does and where, and what stands in its place. Three rules keep it narrow and free of cost:

* In ``torch`` only functions are replaced that cannot do their work without CUDA. What works there (``torch.zeros``,
  ``Tensor.type``) stays, so that code outside of megatron-core sees an untouched torch.
* Where megatron-core writes a CUDA name into a function (``device="cuda"``, ``== "torch.cuda.FloatTensor"``), the
  constant is exchanged inside that function. This reaches every name bound to it, earlier or later, and costs nothing
  in a call.
* Nothing is intercepted. A ``TorchFunctionMode`` would do all of this in ten lines, but is paid in every torch call of
  the process: 25 instead of 19 ms for a step of a GPT of 4 layers, width 64 (2 CPU cores, 2026-11).

What no entry can change: the host has one random generator, so ``model_parallel_cuda_manual_seed`` seeds
``torch.rand`` too. Faults of megatron-core that concern a GPU as well are in ``mcore_repairs.py``.
"""

import importlib
import inspect
import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager
from types import CodeType, FunctionType
from typing import Any

import torch

from ultramem_megatron.parallel.patching import Apply, Entry, Undo, apply_entries, put

CPU_NAMES = {
    "cuda": "cpu",
    "torch.cuda.FloatTensor": "torch.FloatTensor",
    "torch.cuda.HalfTensor": "torch.HalfTensor",
    "torch.cuda.BFloat16Tensor": "torch.BFloat16Tensor",
}

NORM_BLOCK_ELEMENTS = 2**20
"""Gradients are added up so many at a time."""


def install() -> None:
    """Make megatron-core run on CPU tensors. Call it in each process, before megatron-core is used; twice is once.

    Modules of megatron-core that were imported before are reached as well. Costs the import of megatron-core.

    Raises:
        AssertionError: On a machine with CUDA, where none of this may be touched.
    """
    assert not torch.cuda.is_available(), "the CPU seam must not be installed where CUDA is available"
    apply_entries(ENTRIES)


# --- How an entry changes something -----------------------------------------------------------------------------------


def _cpu_names(functions: Mapping[str, tuple[str, ...]]) -> Apply:
    """Exchanges the CUDA names written into functions of megatron-core.

    Args:
        functions: Module below ``megatron.core`` -> functions in it, ``function`` or ``Class.method``.
    """
    return lambda: [_exchange(_find(module, path)) for module, paths in functions.items() for path in paths]


def _find(module: str, path: str) -> FunctionType:
    """The plain function behind decorators (``lru_cache``, ``no_grad``) and behind a class method."""
    found: Any = importlib.import_module(f"megatron.core.{module}")
    for name in path.split("."):
        found = getattr(found, name)
    function = inspect.unwrap(getattr(found, "__func__", found))
    assert isinstance(function, FunctionType), f"megatron.core.{module}.{path} is not a Python function"
    return function


def _exchange(function: FunctionType) -> Undo:
    before = function.__code__
    after = _with_cpu_names(before)
    assert after != before, f"{function.__module__}.{function.__qualname__} names no CUDA; the seam is out of date"
    function.__code__ = after
    return lambda: setattr(function, "__code__", before)


def _with_cpu_names(constant: Any) -> Any:
    """A constant of a code object with its CUDA names exchanged: a string, a tuple of constants, an inner function."""
    if isinstance(constant, str):
        return CPU_NAMES.get(constant, constant)
    if isinstance(constant, tuple):
        return tuple(_with_cpu_names(item) for item in constant)
    if isinstance(constant, CodeType):
        return constant.replace(co_consts=_with_cpu_names(constant.co_consts))
    return constant


# --- Functions that cannot work without CUDA --------------------------------------------------------------------------


class HostEvent(torch.cpu.Event):
    """``torch.cpu.Event`` with the arguments of ``torch.cuda.Event``: on the host, everything has happened."""

    def __init__(self, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False) -> None:
        super().__init__()


class HostStream(torch.cpu.Stream):
    """``torch.cpu.Stream`` with the arguments of ``torch.cuda.Stream``: the one order in which the host works."""

    def __init__(self, device: Any = None, priority: int = 0) -> None:
        super().__init__(priority)

    def record_event(self, event: HostEvent | None = None) -> HostEvent:  # type: ignore[override]
        """The given event or a new one; a caller waits for what it gets back."""
        return event or HostEvent()


def _use_host_device() -> list[Undo]:
    def current_device() -> Any:
        return torch.cpu.current_device()

    def synchronize(device: Any = None) -> None:
        torch.cpu.synchronize()

    # functions of their own: torch.compile keeps a list of these, and refuses one that stands there twice
    return [put(torch.cuda, "current_device", current_device), put(torch.cuda, "synchronize", synchronize)]


def _keep_tensor_on_host() -> list[Undo]:
    def cuda(tensor: torch.Tensor, device: Any = None, non_blocking: bool = False, **_: Any) -> torch.Tensor:
        return tensor

    return [put(torch.Tensor, "cuda", cuda)]


def _use_host_streams() -> list[Undo]:
    host = HostStream()

    def current_stream(device: Any = None) -> HostStream:
        return host

    def stream(stream: HostStream | None) -> AbstractContextManager[Any]:
        return torch.cpu.stream(stream)  # type: ignore[arg-type]

    return [
        put(torch.cuda, "Stream", HostStream),
        put(torch.cuda, "Event", HostEvent),
        put(torch.cuda, "current_stream", current_stream),
        put(torch.cuda, "default_stream", current_stream),
        put(torch.cuda, "stream", stream),
    ]


def _use_host_generator() -> list[Undo]:
    import megatron.core.tensor_parallel.random as mcore_random

    def get_state(device: Any = "cuda") -> torch.Tensor:
        return torch.get_rng_state()

    def set_state(new_state: torch.Tensor, device: Any = -1, graph_safe: bool = False) -> None:
        torch.set_rng_state(new_state)

    return [
        put(torch.cuda, "manual_seed", torch.manual_seed),
        put(torch.cuda, "get_rng_state", get_state),
        put(torch.cuda.random, "get_rng_state", get_state),
        put(torch.cuda, "set_rng_state", set_state),
        put(mcore_random, "_set_cuda_rng_state", set_state),
    ]


def _drop_generator_warning() -> list[Undo]:
    logger = logging.getLogger("megatron.core.tensor_parallel.random")

    def keep(record: logging.LogRecord) -> bool:
        return record.getMessage() != "CPU RNG state changed within GPU RNG context"

    logger.addFilter(keep)
    return [lambda: logger.removeFilter(keep)]


def _sum_norm_in_fp64() -> list[Undo]:
    from megatron.core.optimizer import clip_grads

    def l2_norm(chunk_size: int, overflow: torch.Tensor, lists: Any, per_tensor: bool) -> tuple[torch.Tensor, None]:
        # in blocks: on the host the conversion is a copy, which for a table's gradient would be twice its size
        blocks = [block for tensor in lists[0] for block in tensor.view(-1).split(NORM_BLOCK_ELEMENTS)]
        norms = [torch.linalg.vector_norm(block, dtype=torch.float64) for block in blocks]
        return torch.linalg.vector_norm(torch.stack(norms)).float().reshape(1), None

    return [put(clip_grads, "l2_norm_impl", l2_norm)]


def _give_numpy_splits() -> list[Undo]:
    from megatron.core.transformer.moe import token_dispatcher

    def maybe_move_tensor_to_cpu(tensor: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:
        return tensor.numpy().copy() if as_numpy and torch.is_tensor(tensor) else tensor

    return [put(token_dispatcher, "maybe_move_tensor_to_cpu", maybe_move_tensor_to_cpu)]


def _exchange_buffers_in_blocks() -> list[Undo]:
    from megatron.core.distributed import param_and_grad_buffer

    from ultramem_megatron.parallel import host_exchange

    return [
        put(param_and_grad_buffer, "_coalescing_manager", host_exchange.coalesced),
        put(param_and_grad_buffer, "dist_reduce_scatter_func", host_exchange.reduce_scatter),
        put(param_and_grad_buffer, "dist_all_gather_func", host_exchange.all_gather),
    ]


ENTRIES: tuple[Entry, ...] = (
    Entry(
        name="current device",
        why="torch.cuda.current_device() is the device= of nearly every buffer, and torch.cuda.synchronize()"
        " closes timers, checkpoints and pipeline sends; both raise without CUDA",
        instead="the functions of the same names in torch.cpu",
        apply=_use_host_device,
    ),
    Entry(
        name="Tensor.cuda",
        why="tensor_parallel/data.py broadcast_data, dist_checkpointing/exchange_utils.py, optimizer/optimizer.py"
        " restore_from_cpu and models/common/embeddings/rope_utils.py call tensor.cuda(), which raises",
        instead="the tensor itself",
        apply=_keep_tensor_on_host,
    ),
    Entry(
        name="streams",
        why="distributed/distributed_data_parallel.py (several optimizer instances), transformer/moe/shared_experts.py"
        " and token_dispatcher.py (alltoall) create torch.cuda.Stream and Event and wait for them; creation raises",
        instead="torch.cpu's, which have nothing to wait for",
        apply=_use_host_streams,
    ),
    Entry(
        name="random generator",
        why="tensor_parallel/random.py CudaRNGStatesTracker and rerun_state_machine.py read and set the generator of"
        " the GPU. Reading raises; manual_seed and set_rng_state are queued for a start of CUDA that never comes, so"
        " fork() would change nothing",
        instead="the generator of the host, from which dropout and initialisation draw here",
        apply=_use_host_generator,
    ),
    Entry(
        name="random generator warning",
        why="tensor_parallel/random.py CudaRNGStatesTracker.fork warns when the generator of the host moves inside it,"
        " which is now the purpose: one line for each dropout",
        instead="a filter on this one message",
        apply=_drop_generator_warning,
    ),
    Entry(
        name="gradient clipping",
        why="optimizer/clip_grads.py asserts gradients of type 'torch.cuda.FloatTensor' and makes its buffers with"
        " device='cuda'",
        instead="'torch.FloatTensor' and 'cpu'",
        apply=_cpu_names(
            {
                "optimizer.clip_grads": (
                    "get_grad_norm_fp32",
                    "clip_grad_by_total_norm_fp32",
                    "count_zeros_fp32",
                ),
            }
        ),
    ),
    Entry(
        name="gradient norm",
        why="optimizer/clip_grads.py takes utils.py local_multi_tensor_l2_norm, which returns the norm in a tensor with"
        " device='cuda'; and torch.norm on the host adds up in fp32, wrong by 1e-5 to 1e-4 for a million gradients, so"
        " that the norm would depend on how many of them a rank holds",
        instead="the same sum in fp64",
        apply=_sum_norm_in_fp64,
    ),
    Entry(
        name="buffer exchange",
        why="distributed/param_and_grad_buffer.py sums gradients and gathers weights one whole buffer at a time, which"
        " gloo copies before it starts: as much memory again as the gradient of a value table",
        instead="the same collectives on blocks of the buffer, and none in a group of one rank",
        apply=_exchange_buffers_in_blocks,
    ),
    Entry(
        name="loss scale",
        why="optimizer/grad_scaler.py, and MixedPrecisionOptimizer and FP32Optimizer in optimizer/optimizer.py, keep"
        " the scale and the overflow flag in tensors with device='cuda'",
        instead="'cpu'",
        apply=_cpu_names(
            {
                "optimizer.grad_scaler": ("MegatronGradScaler.__init__", "DynamicGradScaler.__init__"),
                "optimizer.optimizer": ("MixedPrecisionOptimizer.__init__", "FP32Optimizer.__init__"),
            }
        ),
    ),
    Entry(
        name="parameter types",
        why="optimizer/distrib_optimizer.py DistributedOptimizer and optimizer/optimizer.py"
        " Float16OptimizerWithFloat16Params sort parameters by param.type() == 'torch.cuda.FloatTensor' and the like,"
        " and raise TypeError for any other",
        instead="the names of the CPU types",
        apply=_cpu_names(
            {
                "optimizer.distrib_optimizer": (
                    "DistributedOptimizer.__init__",
                    "DistributedOptimizer._build_model_and_main_param_groups",
                ),
                "optimizer.optimizer": ("Float16OptimizerWithFloat16Params.__init__",),
            }
        ),
    ),
    Entry(
        name="schedules",
        why="the three schedules of pipeline_parallel/schedules.py count tokens in a tensor with device='cuda', and"
        " their forward_step opens torch.autocast('cuda')",
        instead="'cpu'",
        apply=_cpu_names(
            {
                "pipeline_parallel.schedules": (
                    "forward_step",
                    "forward_backward_no_pipelining",
                    "forward_backward_pipelining_with_interleaving",
                    "forward_backward_pipelining_without_interleaving",
                )
            }
        ),
    ),
    Entry(
        name="attention masks",
        why="transformer/utils.py builds the causal and the sliding-window mask with device='cuda'",
        instead="'cpu'",
        apply=_cpu_names({"transformer.utils": ("get_default_causal_mask", "get_sliding_window_causal_mask")}),
    ),
    Entry(
        name="data broadcast",
        why="tensor_parallel/data.py broadcast_data sends the sizes of a batch in a tensor with device='cuda'",
        instead="'cpu'",
        apply=_cpu_names({"tensor_parallel.data": ("_build_key_size_numel_dictionaries",)}),
    ),
    Entry(
        name="expert splits",
        why="transformer/moe/token_dispatcher.py (alltoall) turns the numbers of tokens it sends into numpy arrays with"
        " maybe_move_tensor_to_cpu, which does so only for CUDA tensors; all_to_all_single refuses the tensors",
        instead="numpy arrays for CPU tensors too",
        apply=_give_numpy_splits,
    ),
    Entry(
        name="expert metrics",
        why="transformer/moe/moe_utils.py track_moe_metrics makes an absent auxiliary loss with device='cuda'",
        instead="'cpu'",
        apply=_cpu_names({"transformer.moe.moe_utils": ("track_moe_metrics",)}),
    ),
    Entry(
        name="checkpoint exchange",
        why="dist_checkpointing/exchange_utils.py receives shards that other ranks have loaded in tensors with"
        " device='cuda' (its gather_rounds algorithm is left as it is: gloo cannot gather tensors of unequal sizes)",
        instead="'cpu'",
        apply=_cpu_names({"dist_checkpointing.exchange_utils": ("_get_empty_tensor_for_exchange",)}),
    ),
    Entry(
        name="checkpoint metadata",
        why="dist_checkpointing/strategies/state_dict_saver.py agrees among the ranks, in a tensor with device='cuda',"
        " whether the metadata of the save before can be used again",
        instead="'cpu'",
        apply=_cpu_names({"dist_checkpointing.strategies.state_dict_saver": ("verify_global_md_reuse",)}),
    ),
    Entry(
        name="rerun verdict",
        why="rerun_state_machine.py RerunStateMachine._reduce_any adds up flags of the ranks in a tensor with"
        " device='cuda'",
        instead="'cpu'",
        apply=_cpu_names({"rerun_state_machine": ("RerunStateMachine._reduce_any",)}),
    ),
)
