"""The value table: this rank's shard of one logical [N, V] parameter."""

from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing import ShardedTensor
from torch import Tensor, nn

from ultramem_megatron.parallel.partition.base import Picks, ValuePartition
from ultramem_megatron.parallel.timeline import Timeline
from ultramem_megatron.parallel.underway import finish


class ValueTable(nn.Module):
    """Holds the shard, hands lookups to its partition, and knows its place in the logical table.

    The parameter rides Megatron's expert-parallel path: ``allreduce = False`` puts it into DDP's expert buffers,
    which are reduced over ``mem_dp`` (``parallel/groups.py``), at every group size, 1 included, so that the chain of
    optimizers has the same shape in every layout and a checkpoint loads under any other.
    """

    def __init__(
        self, partition: ValuePartition, mem_dp: dist.ProcessGroup, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__()
        self.partition = partition
        self.mem_dp = mem_dp
        self.shard = partition.shard(partition.channel.rank)
        self.weight = nn.Parameter(torch.empty(self.shard.shape, dtype=dtype, device=device))
        self.weight.allreduce = False  # type: ignore[attr-defined]
        # every rank's shard is its own: count it in the gradient norm on all tensor-parallel ranks
        self.weight.tensor_model_parallel = True  # type: ignore[attr-defined]

    @property
    def waits(self) -> int:
        """How often ``look_up`` awaits something, and ``multiply`` as often."""
        return self.partition.waits

    def watch(self, timeline: Timeline) -> None:
        """From now on ``timeline`` notes what the table's partition sends."""
        self.partition.channel = replace(self.partition.channel, timeline=timeline)

    async def look_up(self, picks: Picks) -> Tensor:
        """pooled_TEV of the tokens of this rank. Collective over ``mem``; all ranks have as many tokens."""
        return await self.partition.look_up(self.weight, picks, self._tokens(picks.rows_TK))

    async def multiply(self, rows_TK: Tensor, vectors_TV: Tensor) -> Tensor:
        """<row, vector of its token> for each pick, [T, K] fp32. Collective as the lookup."""
        return await self.partition.multiply(self.weight, rows_TK, vectors_TV, self._tokens(rows_TK))

    def forward(self, picks: Picks) -> Tensor:
        """``look_up``, with nothing in between."""
        return finish(self.look_up(picks))

    def _tokens(self, rows_TK: Tensor) -> list[int]:
        return [rows_TK.shape[0]] * self.partition.channel.size

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), metadata: dict[str, Any] | None = None
    ) -> dict[str, ShardedTensor]:
        """The shard in the coordinates of the logical table; any partition loads what any other saved."""
        assert not sharded_offsets, "a table belongs to no stack of layers"
        rows, columns = self.shard.rows, self.shard.columns
        key = f"{prefix}weight"
        return {
            key: ShardedTensor(
                key=key,
                data=self.weight,
                dtype=self.weight.dtype,
                local_shape=tuple(self.weight.shape),
                global_shape=(self.partition.table.num_rows, self.partition.table.value_dim),
                global_offset=(rows.start, columns.start),
                axis_fragmentations=None,  # rows need not divide evenly
                replica_id=(0, 0, self.mem_dp.rank()),
            )
        }
