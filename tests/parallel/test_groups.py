"""Process groups: the ranks that the grid names, and what megatron-core's modules, DDP and optimizer are given."""

from types import ModuleType

import pytest
import torch
import torch.distributed as dist

from ultramem_megatron.planning.rank_grid import RankGrid, build_rank_grid
from ultramem_megatron.testing.distributed import run_distributed

WORLD = 4


def ranks_of(group: dist.ProcessGroup) -> tuple[int, ...]:
    return tuple(dist.get_process_group_ranks(group))


EXPERT_GROUPS = ("ep", "expt_tp", "tp_ep", "expt_dp", "intra_expt_dp", "tp_ep_pp")


def report(grid: RankGrid, virtual: int, expert: int = 1, value_tables: bool = True) -> dict[str, object]:
    from ultramem_megatron.parallel.groups import build_groups, destroy_groups

    groups = build_groups(
        grid,
        expert=expert,
        value_tables=value_tables,
        virtual_pipeline=virtual,
        seed=1,
        device=torch.device("cpu"),
    )
    found: dict[str, object] = {
        "mem": ranks_of(groups.mem),
        "mem_dp": ranks_of(groups.mem_dp),
        "nodes": groups.mem_nodes and (ranks_of(groups.mem_nodes.inside), ranks_of(groups.mem_nodes.across)),
        "modules": {name: ranks_of(getattr(groups.mcore, name)) for name in EXPERT_GROUPS},
        "gradients": {name: ranks_of(getattr(groups.gradients, name)) for name in EXPERT_GROUPS},
        "tp": ranks_of(groups.tp),
        "dp_cp": ranks_of(groups.dp_cp),
        "data": (groups.data_rank, groups.data_ranks),
        "stage": (groups.pipeline_rank, groups.is_last_stage),
    }
    destroy_groups()
    assert not dist.is_initialized()
    return found


def own(lists: tuple[tuple[int, ...], ...], rank: int) -> tuple[int, ...]:
    return next(ranks for ranks in lists if rank in ranks)


@pytest.mark.parametrize(
    ("tensor", "pipeline", "virtual", "mem"),
    [
        (1, 1, 1, 2),
        (2, 2, 1, 2),
        *(
            pytest.param(*degrees, marks=pytest.mark.slow)
            for degrees in [(1, 1, 1, 1), (1, 1, 1, 4), (2, 1, 1, 4), (1, 2, 1, 2), (1, 2, 2, 1)]
        ),
    ],
)
def test_groups_are_those_of_the_grid(megatron: ModuleType, tensor: int, pipeline: int, virtual: int, mem: int) -> None:
    grid = build_rank_grid(world_size=WORLD, tensor=tensor, pipeline=pipeline, memory_parallel_size=mem)
    for rank, found in enumerate(run_distributed(WORLD, report, grid, virtual)):
        stage, in_stage = divmod(rank, WORLD // pipeline)
        assert found["mem"] == own(grid.mem, rank)
        assert found["nodes"] is None
        reduced = found["gradients"]
        assert isinstance(reduced, dict)
        assert found["mem_dp"] == reduced["expt_dp"] == reduced["intra_expt_dp"] == own(grid.mem_dp, rank)
        assert reduced["tp_ep_pp"] == own(grid.mem_pp, rank)
        assert found["tp"] == tuple(range(rank - rank % tensor, rank - rank % tensor + tensor))
        first = stage * (WORLD // pipeline) + rank % tensor
        assert found["dp_cp"] == tuple(range(first, (stage + 1) * (WORLD // pipeline), tensor))
        assert found["data"] == (in_stage // tensor, WORLD // pipeline // tensor)
        assert found["stage"] == (stage, stage == pipeline - 1)


def test_the_groups_of_a_grid_of_nodes(megatron: ModuleType) -> None:
    grid = build_rank_grid(world_size=WORLD, tensor=1, pipeline=1, memory_parallel_size=4, node_size=2)
    expected = [((0, 1), (0, 2)), ((0, 1), (1, 3)), ((2, 3), (0, 2)), ((2, 3), (1, 3))]
    assert [found["nodes"] for found in run_distributed(WORLD, report, grid, 1)] == expected


def test_experts_are_shared_by_data_parallel_ranks(megatron: ModuleType) -> None:
    """tensor = 2 and expert = 2 on 4 ranks: ranks 0 and 2 share the experts' first halves, 1 and 3 the second ones."""
    grid = build_rank_grid(world_size=WORLD, tensor=2, pipeline=1, memory_parallel_size=1)
    for rank, found in enumerate(run_distributed(WORLD, report, grid, 1, 2, False)):
        pair = (rank - rank % 2, rank - rank % 2 + 1)
        assert found["modules"] == {
            "ep": (rank % 2, rank % 2 + 2),
            "expt_tp": pair,
            "tp_ep": (0, 1, 2, 3),
            "expt_dp": (rank,),
            "intra_expt_dp": (rank,),
            "tp_ep_pp": (0, 1, 2, 3),
        }
        assert found["gradients"] == found["modules"]


def test_modules_do_not_see_the_memory_groups(megatron: ModuleType) -> None:
    """Experts beside value tables are data parallel, whatever ranks hold the same shard of a table."""
    grid = build_rank_grid(world_size=2, tensor=1, pipeline=1, memory_parallel_size=2)
    for rank, found in enumerate(run_distributed(2, report, grid, 1)):
        modules, gradients = found["modules"], found["gradients"]
        assert isinstance(modules, dict) and isinstance(gradients, dict)
        assert (modules["expt_dp"], modules["tp_ep_pp"]) == ((0, 1), (rank,))
        assert (gradients["expt_dp"], gradients["tp_ep_pp"]) == ((rank,), (0, 1))
