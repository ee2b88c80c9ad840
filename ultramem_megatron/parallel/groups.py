"""The process groups of a run, built once. The only file that reads megatron-core's group fields."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

from ultramem_megatron.parallel.channel import NodeGroups
from ultramem_megatron.planning.rank_grid import RankGrid, RankLists


@dataclass(frozen=True, kw_only=True, slots=True)
class Groups:
    """Who talks to whom. A module keeps the groups it uses, not this collection."""

    device: torch.device

    mem: dist.ProcessGroup
    """Ranks that together hold one copy of each value table of the stage. Picks and rows travel here."""

    mem_dp: dist.ProcessGroup
    """Ranks that hold the same shard. Value gradients are reduced here."""

    mem_nodes: NodeGroups | None
    """``mem`` by node; none unless tables are split as a grid."""

    mcore: ProcessGroupCollection
    """What megatron-core's modules are given."""

    gradients: ProcessGroupCollection
    """What its DDP and optimizer are given. With value tables the expert groups are the memory groups."""

    @property
    def tp(self) -> dist.ProcessGroup:
        """Tensor-parallel ranks."""
        return self.mcore.tp

    @property
    def dp_cp(self) -> dist.ProcessGroup:
        """Data-parallel ranks."""
        return self.mcore.dp_cp

    @property
    def data_rank(self) -> int:
        """Place among the data-parallel ranks: which samples are read here."""
        return self.mcore.dp.rank()

    @property
    def data_ranks(self) -> int:
        """Data-parallel ranks."""
        return self.mcore.dp.size()

    @property
    def pipeline_rank(self) -> int:
        """Pipeline stage of this rank."""
        return self.mcore.pp.rank()

    @property
    def is_last_stage(self) -> bool:
        """Whether losses are computed here."""
        return self.pipeline_rank == self.mcore.pp.size() - 1


def build_groups(
    grid: RankGrid, *, expert: int, value_tables: bool, virtual_pipeline: int, seed: int, device: torch.device
) -> Groups:
    """Carve all groups out of the ranks that exist. Collective over the world.

    Args:
        grid: Named lists of ranks, the same on every rank.
        expert: Data-parallel ranks that share the experts.
        value_tables: Whether value tables travel in megatron-core's expert buffers; without them experts do.
        virtual_pipeline: Model chunks on each pipeline stage.
        seed: Of megatron-core's random state (no weight depends on it).
        device: Of this rank.
    """
    parallel_state.initialize_model_parallel(
        grid.tensor,
        grid.pipeline,
        virtual_pipeline_model_parallel_size=virtual_pipeline if virtual_pipeline > 1 else None,
        expert_model_parallel_size=expert,
        create_gloo_process_groups=False,
    )
    model_parallel_cuda_manual_seed(seed)
    mem, mem_dp, mem_pp = (_own_group(lists) for lists in (grid.mem, grid.mem_dp, grid.mem_pp))
    nodes = NodeGroups(_own_group(grid.mem_inside), _own_group(grid.mem_across)) if grid.mem_inside else None
    mcore, gradients = (ProcessGroupCollection.use_mpu_process_groups() for _ in range(2))
    if value_tables:
        # tables ride the expert-parallel path: DDP reduces their gradients over expt_dp, the distributed optimizer
        # shards their state over it, and tp_ep_pp are the ranks whose shards differ
        gradients.expt_dp = gradients.intra_expt_dp = mem_dp
        gradients.tp_ep_pp = mem_pp
    return Groups(device=device, mem=mem, mem_dp=mem_dp, mem_nodes=nodes, mcore=mcore, gradients=gradients)


def _own_group(lists: RankLists) -> dist.ProcessGroup:
    # every rank takes part in making every group
    own, _ = dist.new_subgroups_by_enumeration([list(ranks) for ranks in lists])
    assert own is not None
    return own


def destroy_groups() -> None:
    """End megatron-core's groups and torch's."""
    parallel_state.destroy_model_parallel()
    dist.destroy_process_group()
