"""Messages between pipeline stages: megatron-core's, and twice as long where a memory span crosses the boundary.

Under the interleaved schedule megatron-core expects one shape of all boundaries, unless each message is preceded by
another that says its shape, with a synchronisation of host and device. Here nothing is asked: a rank's neighbours send
in an order that the schedule fixes, so the shape of the next message is known before it comes.
"""

import copy
from collections.abc import Iterator, Sequence

import torch.distributed as dist
from megatron.core.model_parallel_config import ModelParallelConfig
from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator
from megatron.core.pipeline_parallel.schedules import get_schedule_table
from torch import Tensor

from ultramem_megatron.planning.stages import Stages

Shape = tuple[int, ...]
NOTHING: Shape = (0,)


class StageMessages(P2PCommunicator):
    """What megatron-core's schedules send and receive through."""

    def __init__(
        self,
        pipeline: dist.ProcessGroup,
        config: ModelParallelConfig,
        *,
        stages: Stages,
        crossed: Sequence[bool],
        hidden_shape: Shape,
    ) -> None:
        """Args:
        pipeline: The ranks of one pipeline.
        config: megatron-core's.
        stages: How the model is cut.
        crossed: For the boundary after each stage but the last, whether a span crosses it.
        hidden_shape: Of the hidden state between blocks on this rank.
        """
        asking = copy.copy(config)
        asking.variable_seq_lengths = True  # the communicator, which alone reads it, then asks _communicate_shapes
        super().__init__(pipeline, asking)
        self.stages = stages
        self.shapes = [((2 if doubled else 1) * hidden_shape[0], *hidden_shape[1:]) for doubled in crossed]
        self._activations: Iterator[Shape] = iter(())
        self._gradients: Iterator[Shape] = iter(())

    def begin(self, micro_batches: int) -> None:
        """Before the schedule runs ``micro_batches`` micro-batches, forward only or both ways."""
        group_size = self.config.microbatch_group_size_per_vp_stage
        chunks = [chunk for _, chunk in get_schedule_table(micro_batches, self.stages.chunks, group_size)]
        rank, size = self.pp_group.rank(), self.pp_group.size()
        before, after = (rank - 1) % size, (rank + 1) % size
        self._activations = self._sent_by(before, chunks, ahead=0)
        # the backward pass takes the chunks the other way round
        self._gradients = self._sent_by(after, [self.stages.chunks - 1 - chunk for chunk in chunks], ahead=-1)

    def _sent_by(self, rank: int, chunks: Sequence[int], ahead: int) -> Iterator[Shape]:
        """Shapes of the messages that ``rank`` sends over the boundary after (0) or before (-1) each of its stages."""
        for chunk in chunks:
            boundary = self.stages.of_chunk(rank, chunk) + ahead
            if 0 <= boundary < len(self.shapes):  # nothing leaves the model at its ends
                yield self.shapes[boundary]

    def _communicate_shapes(
        self, tensor_send_next: Tensor | None, tensor_send_prev: Tensor | None, recv_prev: bool, recv_next: bool
    ) -> tuple[Shape, Shape]:
        """megatron-core's question before each exchange: (shape from the rank before, shape from the one after)."""
        return next(self._activations) if recv_prev else NOTHING, next(self._gradients) if recv_next else NOTHING
