"""What real training steps take of a process's memory, part by part, beside what the plan says."""

import ctypes
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.planning.memory_cost import MemoryCost

WORK = ("activations", "lookup_buffers")
"""Parts that come and go within a step; what is measured is their sum."""

STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
M_MMAP_THRESHOLD = -3  # mallopt(3): larger blocks are mapped on their own, and unmapped when freed
OWN_MAPPING_BYTES = 64 * 1024
RESET_PEAK = "5"  # proc(5), clear_refs: set the peak to what is resident now


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasuredMemory:
    """Bytes of one process, above what it held before the model was built."""

    set_up_peak: int
    """Highest while model, buffers and optimizer were made."""
    step_peak: int
    """Highest during steps; the first, in which buffers are touched and moments are made, is not among them."""
    save_peak: int | None
    """Highest while a checkpoint was saved after the steps, if one was."""
    held: dict[str, int]
    """Sizes of the tensors that outlive a step, by the names that the plan uses."""

    @property
    def work(self) -> int:
        """What a step takes beside them."""
        return self.step_peak - sum(self.held.values())


class PeakMemory:
    """Highest use of memory since the last ``reset``: of the device's allocator, or of the process on a CPU.

    On a CPU pages of files do not count: code of libraries comes in when it is first called. And freed memory goes back
    to the system at once, which glibc by default keeps: 100 to 200 MiB of holes after a model was built, the same for
    every size of table. A GPU's allocator keeps such memory too, and does not count it as allocated either.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cpu":
            ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, OWN_MAPPING_BYTES)
        self.reset()
        self.before = self._now()

    def reset(self) -> None:
        """Begin anew from what is in use now."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            CLEAR_REFS.write_text(RESET_PEAK)

    def bytes(self) -> int:
        """Above what was in use when this was made."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            return torch.cuda.max_memory_allocated(self.device) - self.before
        status = _process_status()
        return status["VmHWM"] - status["RssFile"] - status["RssShmem"] - self.before

    def _now(self) -> int:
        return torch.cuda.memory_allocated(self.device) if self.device.type == "cuda" else _process_status()["RssAnon"]


def largest_allocation(work: Callable[[], Any]) -> int:
    """Bytes of the largest single block that torch allocates on the host while it does ``work``.

    Blocks that operations take for themselves are among them; those of collectives, which other threads run, are not.
    """
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    events = profile.profiler.kineto_results.events()
    return max((event.nbytes() for event in events if event.name() == "[memory]"), default=0)


def measure_training(
    config: RunConfig, steps: int, device: torch.device, save_to: Path | None = None
) -> MeasuredMemory:
    """Train ``steps`` steps and one before them. Collective over the world; megatron-core is set up and imported.

    Args:
        config: Of the run. Only what steps need is built: no validation, no metrics.
        steps: Measured.
        device: Of this process.
        save_to: Folder of checkpoints to save one into afterwards.
    """
    from ultramem_megatron.data.dataset import open_training_data
    from ultramem_megatron.planning.choose import choose_plan
    from ultramem_megatron.planning.cluster import local_cluster
    from ultramem_megatron.training.checkpointing import SaveCheckpoints
    from ultramem_megatron.training.setup import build_run_groups, build_train_state
    from ultramem_megatron.training.step import train_step

    plan = choose_plan(config, local_cluster(dist.get_world_size()))
    groups = build_run_groups(config, plan, device)
    dist.barrier()  # gloo's buffers for it are there before we begin
    peak = PeakMemory(device)
    state = build_train_state(config, plan, groups)
    set_up_peak = peak.bytes()
    data = open_training_data(config)
    saves = SaveCheckpoints(save_to, data.identity, state) if save_to else None
    batches = state.batches(data)
    train_step(state, next(batches))
    peak.reset()
    for _ in range(steps):
        train_step(state, next(batches))
    step_peak = peak.bytes()
    return MeasuredMemory(
        set_up_peak=set_up_peak,
        step_peak=step_peak,
        save_peak=_peak_of_save(state, saves, peak) if saves else None,
        held=held_bytes(state),
    )


def _peak_of_save(state: Any, saves: Any, peak: PeakMemory) -> int:
    peak.reset()
    saves.on_exit(state)
    return peak.bytes()


def held_bytes(state: Any) -> dict[str, int]:
    """Bytes of weights, gradients and optimizer state in a ``TrainState``, by the parts of ``MemoryCost``."""
    held = {part.name: 0 for part in fields(MemoryCost) if part.name not in WORK}
    expert = "table" if state.config.memory.span_list else "expert"
    for chunk in state.ddp:
        for kind, buffers in (("dense", chunk.buffers), (expert, chunk.expert_parallel_buffers)):
            for buffer in buffers:
                held[f"{kind}_weights"] += buffer.param_data.nbytes
                held[f"{kind}_gradients"] += buffer.grad_data.nbytes
    for part in state.optimizer.chained_optimizers:
        for group in part.optimizer.param_groups:
            kind = expert if group["is_expert_parallel"] else "dense"
            held[f"{kind}_optimizer"] += sum(tensor.nbytes for tensor in _state_tensors(part, group))
    return held


def _state_tensors(part: Any, group: dict[str, Any]) -> Iterator[Tensor]:
    """Moments, and master weights where they are not the weights themselves."""
    masters = {id(p) for shards in part.shard_fp32_from_float16_groups for p in shards}
    for parameter in group["params"]:
        if id(parameter) in masters:
            yield parameter
        yield from (value for value in part.optimizer.state[parameter].values() if isinstance(value, Tensor))


def _process_status() -> dict[str, int]:
    """The sizes that the kernel reports (proc(5), status), in bytes."""
    lines = (line.split() for line in STATUS.read_text().splitlines())
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if words[-1] == "kB"}
