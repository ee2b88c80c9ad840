"""Bytes and seconds that keep the copies of a table's shard equal, once an optimizer step.

Nothing hides them: DDP begins to reduce when the last micro-batch is done (``optim/build.py`` leaves megatron-core's
``overlap_grad_reduce`` off), and the optimizer waits for it; new weights are gathered before the next forward pass.
"""

from dataclasses import dataclass

from ultramem_megatron.planning.comm_cost import FP32_BYTES
from ultramem_megatron.planning.kernel_time import stream_part
from ultramem_megatron.planning.link_time import collective_seconds
from ultramem_megatron.planning.placement import GroupShape
from ultramem_megatron.planning.profile import ClusterProfile, Collective
from ultramem_megatron.planning.time_part import Part, Pass, Phase

# Letters: M copies of the table; N, Dv, Dp, P, b as in ``comm_cost.py``.


@dataclass(frozen=True, slots=True)
class SyncBytes:
    """What one rank sends for one table in one optimizer step, to keep the copies of its shard equal."""

    gradient_bytes: float
    weight_bytes: float

    @property
    def total_bytes(self) -> float:
        """Gradients and weights."""
        return self.gradient_bytes + self.weight_bytes

    def __add__(self, other: "SyncBytes") -> "SyncBytes":
        return SyncBytes(self.gradient_bytes + other.gradient_bytes, self.weight_bytes + other.weight_bytes)


def table_sync_bytes(*, shard_elements: int, replicas: int, element_bytes: int) -> SyncBytes:
    """Distributed optimizer over the M copies of a shard: fp32 gradients reduce-scattered, new weights gathered.

    Args:
        shard_elements: Elements of one rank's shards, N * (Dv + Dp) / P.
        replicas: M, the ranks that hold this shard; with 1 nothing is sent.
        element_bytes: b of the weights.

    Megatron pads its buffers to a multiple of the group size; the padding is not counted.
    """
    return SyncBytes(
        gradient_bytes=FP32_BYTES * shard_elements * (replicas - 1) / replicas,
        weight_bytes=element_bytes * shard_elements * (replicas - 1) / replicas,
    )


def sync_parts(profile: ClusterProfile, sync: SyncBytes, copies: GroupShape, shard_elements: int) -> tuple[Part, ...]:
    """Once an optimizer step, for one table: gradients reduce-scattered over the copies of a shard, new weights
    gathered, and the shard's fp32 gradient cleared. The optimizer's own work is the same for every candidate.

    Args:
        profile: The machine.
        sync: What one rank sends.
        copies: The ranks that hold the same shard.
        shard_elements: Of this rank.
    """
    parts = [stream_part(profile, Pass.BACKWARD, Phase.SYNC, FP32_BYTES * shard_elements, "clear_gradients")]
    for collective, num_bytes, name in (
        (Collective.REDUCE_SCATTER, sync.gradient_bytes, "table_gradients"),
        (Collective.ALL_GATHER, sync.weight_bytes, "table_weights"),
    ):
        level, seconds = collective_seconds(profile, collective, num_bytes, copies)
        if seconds:
            parts.append(Part(Pass.BACKWARD, Phase.SYNC, f"{level}.{collective}", seconds, name))
    return tuple(parts)
