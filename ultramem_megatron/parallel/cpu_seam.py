"""Lets megatron-core 0.16.1 run on CPU tensors and gloo, and mends two of its faults on every device.

megatron-core names CUDA in well over a hundred places. The seam is a table, ``ENTRIES``: each entry says what
megatron-core does and where, and what stands in its place. Three rules keep it narrow and free of cost:

* In ``torch`` only functions are replaced that cannot do their work without CUDA. What works there (``torch.zeros``,
  ``Tensor.type``) stays, so that code outside of megatron-core sees an untouched torch.
* Where megatron-core writes a CUDA name into a function (``device="cuda"``, ``== "torch.cuda.FloatTensor"``), the
  constant is exchanged inside that function. This reaches every name bound to it, earlier or later, and costs nothing
  in a call.
* Nothing is intercepted. A ``TorchFunctionMode`` would do all of this in ten lines, but is paid in every torch call of
  the process: 25 instead of 19 ms for a step of a GPT of 4 layers, width 64 (2 CPU cores, 2026-11).

``install`` is for machines without CUDA. ``REPAIRS`` concern a GPU as well, when neither Transformer Engine nor apex is
there: ``install_repairs``. What no entry can change: the host has one random generator, so
``model_parallel_cuda_manual_seed`` seeds ``torch.rand`` too.
"""

import importlib
import inspect
import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import CodeType, FunctionType
from typing import Any

import torch

Undo = Callable[[], None]
Apply = Callable[[], list[Undo]]

CPU_NAMES = {
    "cuda": "cpu",
    "torch.cuda.FloatTensor": "torch.FloatTensor",
    "torch.cuda.HalfTensor": "torch.HalfTensor",
    "torch.cuda.BFloat16Tensor": "torch.BFloat16Tensor",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One thing that megatron-core does and that does not work here."""

    name: str
    """Short and unique; tests and messages use it."""
    why: str
    """What megatron-core 0.16.1 does, and where (files are relative to megatron/core)."""
    instead: str
    """What stands in its place."""
    apply: Apply
    """Puts it there; returns what takes it away again."""


_installed: dict[str, list[Undo]] = {}  # a patch of the process is process state: entry name -> how to take it back


def install() -> None:
    """Make megatron-core run on CPU tensors. Call it in each process, before megatron-core is used; twice is once.

    Modules of megatron-core that were imported before are reached as well. Costs the import of megatron-core.

    Raises:
        AssertionError: On a machine with CUDA, where none of this may be touched.
    """
    assert not torch.cuda.is_available(), "the CPU seam must not be installed where CUDA is available"
    _apply_all(ENTRIES)
    _apply_all(REPAIRS)


def install_repairs() -> None:
    """Mend the faults of megatron-core that concern every device (``REPAIRS``); twice is once."""
    _apply_all(REPAIRS)


def uninstall() -> None:
    """Take everything back, newest first (for tests)."""
    for name in reversed(list(_installed)):
        for undo in reversed(_installed.pop(name)):
            undo()


def _apply_all(entries: Iterable[Entry]) -> None:
    for entry in entries:
        if entry.name not in _installed:
            _installed[entry.name] = entry.apply()


# --- How an entry changes something -----------------------------------------------------------------------------------


def _put(owner: Any, attribute: str, value: Any) -> Undo:
    """Set ``owner.attribute``; what was inherited or absent before is so again afterwards."""
    if attribute in vars(owner):
        before = vars(owner)[attribute]
        setattr(owner, attribute, value)
        return lambda: setattr(owner, attribute, before)
    setattr(owner, attribute, value)
    return lambda: delattr(owner, attribute)


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
    return [
        _put(torch.cuda, "current_device", torch.cpu.current_device),
        _put(torch.cuda, "synchronize", torch.cpu.synchronize),
    ]


def _keep_tensor_on_host() -> list[Undo]:
    def cuda(tensor: torch.Tensor, device: Any = None, non_blocking: bool = False, **_: Any) -> torch.Tensor:
        return tensor

    return [_put(torch.Tensor, "cuda", cuda)]


def _use_host_streams() -> list[Undo]:
    host = HostStream()

    def current_stream(device: Any = None) -> HostStream:
        return host

    def stream(stream: HostStream | None) -> AbstractContextManager[Any]:
        return torch.cpu.stream(stream)  # type: ignore[arg-type]

    return [
        _put(torch.cuda, "Stream", HostStream),
        _put(torch.cuda, "Event", HostEvent),
        _put(torch.cuda, "current_stream", current_stream),
        _put(torch.cuda, "default_stream", current_stream),
        _put(torch.cuda, "stream", stream),
    ]


def _use_host_generator() -> list[Undo]:
    import megatron.core.tensor_parallel.random as mcore_random

    def get_state(device: Any = "cuda") -> torch.Tensor:
        return torch.get_rng_state()

    def set_state(new_state: torch.Tensor, device: Any = -1, graph_safe: bool = False) -> None:
        torch.set_rng_state(new_state)

    return [
        _put(torch.cuda, "manual_seed", torch.manual_seed),
        _put(torch.cuda, "get_rng_state", get_state),
        _put(torch.cuda.random, "get_rng_state", get_state),
        _put(torch.cuda, "set_rng_state", set_state),
        _put(mcore_random, "_set_cuda_rng_state", set_state),
    ]


def _drop_generator_warning() -> list[Undo]:
    logger = logging.getLogger("megatron.core.tensor_parallel.random")

    def keep(record: logging.LogRecord) -> bool:
        return record.getMessage() != "CPU RNG state changed within GPU RNG context"

    logger.addFilter(keep)
    return [lambda: logger.removeFilter(keep)]


def _give_numpy_splits() -> list[Undo]:
    from megatron.core.transformer.moe import token_dispatcher

    def maybe_move_tensor_to_cpu(tensor: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:
        return tensor.numpy().copy() if as_numpy and torch.is_tensor(tensor) else tensor

    return [_put(token_dispatcher, "maybe_move_tensor_to_cpu", maybe_move_tensor_to_cpu)]


# --- Faults on every device, without Transformer Engine and apex ------------------------------------------------------


def _bind_router_gemm() -> list[Undo]:
    from megatron.core.transformer.moe import moe_utils

    return [] if hasattr(moe_utils, "te_general_gemm") else [_put(moe_utils, "te_general_gemm", None)]


def _separate_adam_steps() -> list[Undo]:
    from megatron.core.optimizer import distrib_optimizer

    if distrib_optimizer.HAVE_APEX_OR_TE:
        return []
    optimizer_class = distrib_optimizer.DistributedOptimizer
    load_before = optimizer_class.load_state_dict
    set_before = optimizer_class._set_main_param_and_optimizer_states

    def load_state_dict(self: Any, state_dict: dict[str, Any]) -> None:
        load_before(self, state_dict)
        for state in self.optimizer.state.values():
            state["step"] = state["step"].clone()

    def set_states(self: Any, model_param: torch.nn.Parameter, tensors: dict[str, torch.Tensor]) -> None:
        group, order = self.model_param_group_index_map[model_param]
        state = self.optimizer.state[self.optimizer.param_groups[group]["params"][order]]
        kept = {"step": state["step"]} if "step" in state else {}
        set_before(self, model_param, kept | tensors)

    return [
        _put(optimizer_class, "load_state_dict", load_state_dict),
        _put(optimizer_class, "_set_main_param_and_optimizer_states", set_states),
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
        " device='cuda', as does utils.py local_multi_tensor_l2_norm with the norm",
        instead="'torch.FloatTensor' and 'cpu'",
        apply=_cpu_names(
            {
                "optimizer.clip_grads": (
                    "get_grad_norm_fp32",
                    "clip_grad_by_total_norm_fp32",
                    "count_zeros_fp32",
                ),
                "utils": ("local_multi_tensor_l2_norm",),
            }
        ),
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

REPAIRS: tuple[Entry, ...] = (
    Entry(
        name="router gemm",
        why="transformer/moe/moe_utils.py RouterGatingLinearFunction asks `te_general_gemm is not None`, a name that"
        " only the import of Transformer Engine binds: NameError in every MoE router without it",
        instead="None, which takes the branch of plain torch",
        apply=_bind_router_gemm,
    ),
    Entry(
        name="Adam step",
        why="with torch's AdamW, optimizer/distrib_optimizer.py DistributedOptimizer.load_state_dict gives all"
        " parameters ONE step tensor, which AdamW then increments once for each of them: after a resume the bias"
        " correction is wrong and the loss drifts. And _set_main_param_and_optimizer_states asks a fully_reshardable"
        " state for the step, which is not saved in it: KeyError",
        instead="a step of its own for each parameter; a state without one keeps the step just restored",
        apply=_separate_adam_steps,
    ),
)
