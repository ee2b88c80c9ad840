"""One config under many layouts: the same curve from each. Used by tests and by ``tools/compare_layouts``."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import torch

from ultramem_megatron.config.load import parse_override, resolve, to_plain
from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.testing.distributed import run_distributed


@dataclass(frozen=True, slots=True)
class Layout:
    """Processes and the settings that lay them out."""

    name: str
    processes: int
    overrides: tuple[str, ...] = ()


def _layout(name: str, processes: int, *settings: str) -> Layout:
    return Layout(name, processes, settings)


LAYOUTS: tuple[Layout, ...] = (
    _layout("1 process", 1),
    _layout("DP2", 2, "memory.parallel_size=1"),
    _layout("DP4, mem 4 number-wise", 4, "memory.parallel_size=4", "memory.partition=number_wise"),
    _layout("DP4, mem 4 pooled at owners", 4, "memory.parallel_size=4", "memory.partition=number_wise_pooled"),
    _layout("DP4, mem 4 dimension-wise", 4, "memory.parallel_size=4", "memory.partition=dimension_wise"),
    _layout("DP4, mem 2 number-wise", 4, "memory.parallel_size=2", "memory.partition=number_wise"),
    _layout(
        "DP4, mem 2 spread, dimension-wise",
        4,
        *("memory.parallel_size=2", "memory.partition=dimension_wise", "memory.placement=spread"),
    ),
    _layout("DP4, mem 2 x 2 grid", 4, "memory.parallel_size=4", "memory.partition=grid", "memory.node_size=2"),
    _layout(
        "TP2+SP x DP2, mem 4 dimension-wise",
        4,
        *("parallelism.tensor=2", "parallelism.sequence=true"),
        *("memory.parallel_size=4", "memory.partition=dimension_wise"),
    ),
    _layout(
        "PP2 x DP2, mem 2 number-wise",
        4,
        *("parallelism.pipeline=2", "memory.parallel_size=2", "memory.partition=number_wise"),
    ),
    _layout("TP2 x PP2", 4, "parallelism.tensor=2", "parallelism.pipeline=2"),
    _layout("PP4", 4, "parallelism.pipeline=4"),
    _layout("PP2 x 2 chunks", 2, "parallelism.pipeline=2", "parallelism.virtual_pipeline=2"),
)
"""The first is the one that the others are compared with. In the last two a stage has one block of the recipe
``parity``, so its spans cross the boundaries between stages."""


MOST_PROCESSES = 4
DATA_PARALLEL = (1, 2, 3, 4)

Option = TypeVar("Option")


class Choose(Protocol):
    """Picks one of several: ``random.Random(...).choice``, or hypothesis."""

    def __call__(self, options: Sequence[Option]) -> Option: ...


def draw_layout(choose: Choose, value_dim: int) -> Layout:
    """Any layout of a model with whole spans on two pipeline stages: partition, P, TP, PP and DP.

    Args:
        choose: Decides.
        value_dim: Width of a table's row, which a dimension-wise split must divide.
    """
    tensor, pipeline = choose((1, 2)), choose((1, 2))
    data = choose([size for size in DATA_PARALLEL if size * tensor * pipeline <= MOST_PROCESSES])
    stage = tensor * data
    memory = choose([size for size in range(1, stage + 1) if stage % size == 0])
    dimension_wise = ("dimension_wise",) if value_dim % memory == 0 else ()
    grid = ("grid",) if memory == 4 and value_dim % 2 == 0 else ()
    partition = choose(("number_wise", *dimension_wise, *grid)) if memory > 1 else "replicated"
    settings = [f"parallelism.tensor={tensor}", f"parallelism.pipeline={pipeline}", f"memory.parallel_size={memory}"]
    if memory > 1:
        settings.append(f"memory.partition={partition}")
    if partition == "grid":
        settings.append("memory.node_size=2")
    if tensor > 1 and choose((False, True)):
        settings.append("parallelism.sequence=true")
    name = f"TP{tensor} PP{pipeline} DP{data} {partition} {memory}"
    return Layout(name, tensor * pipeline * data, tuple(settings))


@dataclass(frozen=True, slots=True)
class Curve:
    """What a run reports, step by step."""

    losses: list[float]
    gradient_norms: list[float]

    def largest_difference(self, other: "Curve") -> tuple[float, float]:
        """Largest relative difference in loss and in gradient norm."""
        return _largest(self.losses, other.losses), _largest(self.gradient_norms, other.gradient_norms)


def _largest(ours: list[float], theirs: list[float]) -> float:
    return max(abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True))


def with_overrides(config: RunConfig, overrides: tuple[str, ...]) -> RunConfig:
    """``config`` with ``key=value`` settings on top; its own pins of the memory group are lifted first."""
    memory = dataclasses.replace(config.memory, parallel_size="auto")
    free = dataclasses.replace(config, memory=memory)
    return resolve([("config", to_plain(free)), *map(parse_override, overrides)])


def train_layout(
    config: RunConfig,
    layout: Layout,
    *,
    load: Path | None = None,
    save: Path | None = None,
    timeout_seconds: float = 300,
) -> Curve:
    """Train ``config.training.steps`` steps under ``layout`` on forked gloo processes.

    Args:
        config: The model and the data; parallelism comes from the layout.
        layout: How the processes are laid out.
        load: Folder of checkpoints to begin from, whatever layout wrote them.
        save: Folder of checkpoints to save into at ``config.training.stop_after`` (the run ends there).
        timeout_seconds: For the whole run.
    """
    settings = with_overrides(config, layout.overrides)
    curves = run_distributed(layout.processes, _train, settings, load, save, timeout_seconds=timeout_seconds)
    return curves[0]


def _train(config: RunConfig, load: Path | None, save: Path | None) -> Curve:
    # imported here: the parent decides whether megatron-core is loaded before it forks
    import torch.distributed as dist

    from ultramem_megatron.data.dataset import open_training_data
    from ultramem_megatron.parallel import cpu_seam, mcore_repairs
    from ultramem_megatron.planning.choose import choose_plan
    from ultramem_megatron.planning.cluster import local_cluster
    from ultramem_megatron.training.checkpointing import SaveCheckpoints, find_start, resume
    from ultramem_megatron.training.setup import build_run_groups, build_train_state
    from ultramem_megatron.training.step import train_step

    cpu_seam.install()
    mcore_repairs.install()
    data = open_training_data(config)
    plan = choose_plan(config, local_cluster(dist.get_world_size()))
    groups = build_run_groups(config, plan, torch.device("cpu"))
    state = build_train_state(config, plan, groups)
    if load is not None and (start := find_start(config, load)) is not None:
        resume(state, start, load, data.fingerprint)
    batches = state.batches(data, state.consumed_samples)
    last = config.training.stop_after or config.training.steps
    results = [train_step(state, next(batches)) for _ in range(state.step, last)]
    if save is not None:
        SaveCheckpoints(save, data.fingerprint, saved_step=0).on_exit(state)
    return Curve([r.loss for r in results], [r.gradient_norm for r in results])
