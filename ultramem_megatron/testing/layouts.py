"""One config under many layouts: the same curve from each. Used by tests and by ``tools/compare_layouts``."""

import dataclasses
import math
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch

from ultramem_megatron.config.load import parse_override, resolve, to_plain
from ultramem_megatron.config.memory import GroupPlacement
from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.parallel.partition.registry import PARTITIONS
from ultramem_megatron.planning.cluster import local_cluster
from ultramem_megatron.planning.enumerate import enumerate_candidates
from ultramem_megatron.planning.plan import Candidate, Plan
from ultramem_megatron.testing.distributed import run_distributed
from ultramem_megatron.testing.plans import local_plan


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


TENSOR_PARALLEL, PIPELINE, DATA_PARALLEL = (1, 2, 4), (1, 2, 4), (1, 2, 3, 4, 6)


def possible_layouts(config: RunConfig, most_processes: int) -> dict[str, list[Layout]]:
    """Every layout of a model of four blocks and heads, with its P, TP, PP, DP and sequence parallelism, by partition.

    Args:
        config: Of the model; its global batch must suit 1, 2, 3, 4 and 6 ranks.
        most_processes: Of which a layout may have as many.
    """
    found: dict[str, list[Layout]] = {partition.value: [] for partition in PARTITIONS}
    for tensor, pipeline, data in product(TENSOR_PARALLEL, PIPELINE, DATA_PARALLEL):
        processes = tensor * pipeline * data
        if processes > most_processes:
            continue
        degrees = (f"parallelism.tensor={tensor}", f"parallelism.pipeline={pipeline}")
        for split, sequence in product(_splits(config, degrees, processes, tensor * data), (False, True)):
            if tensor > 1 or not sequence:
                node = "" if split.node_size is None else f", nodes of {split.node_size}"
                place = f"TP{tensor}{'+SP' if sequence else ''} PP{pipeline} DP{data}"
                name = f"{place}, {split.partition} {split.parallel_size}{node}"
                settings = (f"memory.partition={split.partition}", f"memory.parallel_size={split.parallel_size}")
                nodes = () if split.node_size is None else (f"memory.node_size={split.node_size}",)
                sequences = ("parallelism.sequence=true",) if sequence else ()
                found[split.partition].append(Layout(name, processes, (*degrees, *settings, *nodes, *sequences)))
    return found


def _splits(config: RunConfig, degrees: tuple[str, ...], processes: int, stage: int) -> list[Candidate]:
    """Every partition over every number of ranks and nodes that the planner lets it be."""
    found: dict[str, Candidate] = {}
    for node in (size for size in range(1, stage + 1) if stage % size == 0):
        settings = with_overrides(config, (*degrees, "memory.partition=auto", f"memory.node_size={node}"))
        possible = enumerate_candidates(settings, local_cluster(processes))
        found |= {f"{c.label} {c.node_size}": c for c in possible if c.feasible}
    return list(found.values())


@dataclass(frozen=True, slots=True)
class Curve:
    """What a run reports, step by step."""

    losses: list[float]
    gradient_norms: list[float]

    def largest_difference(self, other: "Curve") -> tuple[float, float]:
        """Largest relative difference in loss and in gradient norm."""
        return _largest(self.losses, other.losses), _largest(self.gradient_norms, other.gradient_norms)


def _largest(ours: list[float], theirs: list[float]) -> float:
    """Infinite where a number is none: ``max`` would pass over it."""
    differences = [abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True)]
    return max(differences) if all(map(math.isfinite, differences)) else math.inf


def with_overrides(config: RunConfig, overrides: tuple[str, ...]) -> RunConfig:
    """``config`` with ``key=value`` settings on top; its own pins of the memory group are lifted first."""
    memory = dataclasses.replace(config.memory, parallel_size="auto", node_size="auto", placement=GroupPlacement.AUTO)
    free = dataclasses.replace(config, memory=memory)
    return resolve([("config", to_plain(free)), *map(parse_override, overrides)])


def in_few_micro_batches(config: RunConfig, layout: Layout) -> Layout:
    """``layout`` with micro-batches so large that a rank has two, or as many as there are pipeline stages.

    The curve does not depend on it (but for the balance loss of experts), and a step takes as long as its number of
    micro-batches. Micro-batches that are larger already stay. A pipeline of several chunks keeps twice as many: its
    schedule takes them in groups, one for each stage.
    """
    parallelism = with_overrides(config, layout.overrides).parallelism
    copies = layout.processes // (parallelism.tensor * parallelism.pipeline)
    samples = config.training.global_batch_size // copies
    fewest = max(2, parallelism.pipeline * (2 if parallelism.virtual_pipeline > 1 else 1))
    counts = [n for n in range(fewest, samples + 1) if samples % n == 0 and n % parallelism.pipeline == 0]
    size = max(config.training.micro_batch_size, samples // counts[0] if counts else 1)
    return dataclasses.replace(layout, overrides=(*layout.overrides, f"training.micro_batch_size={size}"))


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
        save: Folder of checkpoints to save into, every ``config.checkpoint.interval`` steps and at
            ``config.training.stop_after`` (the run ends there).
        timeout_seconds: For the whole run.
    """
    settings = with_overrides(config, layout.overrides)
    plan = local_plan(settings, layout.processes)
    curves = run_distributed(layout.processes, _train, settings, plan, load, save, timeout_seconds=timeout_seconds)
    return curves[0]


def _train(config: RunConfig, plan: Plan, load: Path | None, save: Path | None) -> Curve:
    # imported here: the parent decides whether megatron-core is loaded before it forks
    from ultramem_megatron.data.dataset import open_training_data
    from ultramem_megatron.parallel import cpu_seam, mcore_repairs
    from ultramem_megatron.parallel.process import fix_orders_of_sums
    from ultramem_megatron.training.checkpointing import SaveCheckpoints, find_start, resume
    from ultramem_megatron.training.setup import build_run_groups, build_train_state
    from ultramem_megatron.training.step import train_step

    if config.training.deterministic:
        fix_orders_of_sums()
    cpu_seam.install()
    mcore_repairs.install()
    data = open_training_data(config)
    groups = build_run_groups(config, plan, torch.device("cpu"))
    state = build_train_state(config, plan, groups)
    if load is not None and (start := find_start(config, load)) is not None:
        resume(state, start, load, data)
    saves = SaveCheckpoints(save, data.identity, state) if save is not None else None
    batches = state.batches(data, state.consumed_samples)
    last = config.training.stop_after or config.training.steps
    results = []
    for _ in range(state.step, last):
        results.append(train_step(state, next(batches)))
        if saves is not None:
            saves.after_step(state, results[-1])
    if saves is not None:
        saves.on_exit(state)
    return Curve([r.loss for r in results], [r.gradient_norm for r in results])
