"""Process groups: the ranks that the grid names, and the expert groups of megatron-core that tables ride on."""

from types import ModuleType

import pytest
import torch
import torch.distributed as dist

from ultramem_megatron.planning.rank_grid import RankGrid, build_rank_grid
from ultramem_megatron.testing.distributed import run_distributed

WORLD = 4


def ranks_of(group: dist.ProcessGroup) -> tuple[int, ...]:
    return tuple(dist.get_process_group_ranks(group))


def report(grid: RankGrid, virtual: int) -> dict[str, object]:
    from ultramem_megatron.parallel.groups import build_groups, destroy_groups

    groups = build_groups(grid, virtual_pipeline=virtual, seed=1, device=torch.device("cpu"))
    found: dict[str, object] = {
        "mem": ranks_of(groups.mem),
        "mem_dp": ranks_of(groups.mem_dp),
        "expt_dp": ranks_of(groups.mcore.expt_dp),
        "intra_expt_dp": ranks_of(groups.mcore.intra_expt_dp),
        "tp_ep_pp": ranks_of(groups.mcore.tp_ep_pp),
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
        assert found["mem_dp"] == found["expt_dp"] == found["intra_expt_dp"] == own(grid.mem_dp, rank)
        assert found["tp_ep_pp"] == own(grid.mem_pp, rank)
        assert found["tp"] == tuple(range(rank - rank % tensor, rank - rank % tensor + tensor))
        first = stage * (WORLD // pipeline) + rank % tensor
        assert found["dp_cp"] == tuple(range(first, (stage + 1) * (WORLD // pipeline), tensor))
        assert found["data"] == (in_stage // tensor, WORLD // pipeline // tensor)
        assert found["stage"] == (stage, stage == pipeline - 1)
