"""One memory layer: retrieval (-> pre-values) -> value table -> projection. Variants differ only in their parts."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel.random import get_cuda_rng_tracker
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint
from torch import Tensor, nn

from ultramem_kernels.precision import widened
from ultramem_kernels.product import linear
from ultramem_megatron.memory.auxiliary_loss import attach_loss, core_penalty
from ultramem_megatron.memory.initial_rules import InitialRule
from ultramem_megatron.memory.pre_values import PreValues
from ultramem_megatron.memory.product_keys import ProductKeyRetrieval
from ultramem_megatron.memory.token_share import TokenShare
from ultramem_megatron.memory.tucker import TuckerRetrieval
from ultramem_megatron.memory.value_expansion import OneBlock, PlainSlots, SlotShuffle
from ultramem_megatron.memory.value_table import ValueTable
from ultramem_megatron.parallel.partition.base import Picks
from ultramem_megatron.parallel.underway import finish

# Letters: s tokens of a sequence on this rank, b sequences, D hidden width, T tokens, K picks, E blocks, V value dim.


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerPlace:
    """What a memory layer must know of the run around it."""

    device: torch.device
    share: TokenShare
    dp_cp: dist.ProcessGroup
    mem_dp: dist.ProcessGroup
    dtype: torch.dtype
    """Type of the parameters."""
    loss_scale: float
    """Gradient of the auxiliary loss in one backward pass: 1 / micro-batches, and 1 / tensor-parallel ranks because
    their gradients of dense memory parameters are summed."""


Observer = Callable[[Picks, Tensor], None]
"""Is shown the picks, with the scores that chose them, and the output of each forward pass; the layer knows nothing of
metrics."""


class OutputProjection(nn.Module):
    """The E pooled vectors -> D: the sum of the blocks' W_p in one matrix (paper eq. 14-15)."""

    def __init__(self, inputs: int, hidden: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(hidden, inputs, dtype=dtype))

    def forward(self, pooled_TEV: Tensor) -> Tensor:
        """[T, E, V] -> [T, D]."""
        return linear(pooled_TEV.flatten(1), self.weight)


class MemoryLayer(nn.Module):
    """Reads hidden states [s, b, D] and returns what is to be added to the residual stream, [s, b, D]."""

    def __init__(
        self,
        *,
        place: LayerPlace,
        retrieval: ProductKeyRetrieval,
        addresses: SlotShuffle | OneBlock | PlainSlots,
        table: ValueTable,
        projection: OutputProjection | None,
        pre_values: PreValues | None = None,
        auxiliary: tuple[float, float],
        dropout: float,
        rules: dict[str, InitialRule],
    ) -> None:
        """``auxiliary``: weight and margin of the core penalty. ``rules``: how each parameter starts, by name."""
        super().__init__()
        self.retrieval, self.addresses, self.table = retrieval, addresses, table
        self.projection: nn.Module = projection if projection is not None else nn.Flatten()
        self.pre_values = pre_values
        self.place, self.auxiliary, self.dropout, self.rules = place, auxiliary, dropout, rules
        self.observer: Observer | None = None
        assert set(rules) == {name for name, _ in self.named_parameters()}
        for name, parameter in self.named_parameters():
            if not _of_table(name):
                # computed from this rank's tokens only: summed over tensor parallel, as norms are
                parameter.sequence_parallel = True  # type: ignore[attr-defined]

    def forward(self, x_sbD: Tensor) -> Tensor:
        """``look_up``, with nothing in between."""
        return finish(self.look_up(x_sbD))

    @property
    def waits(self) -> int:
        """How often ``look_up`` awaits something: over so many stretches of other work it can be spread."""
        return sum(table.waits for table in self.tables)

    @property
    def tables(self) -> list[ValueTable]:
        """The value table, and that of the pre-values where the variant has one."""
        return [self.table] if self.pre_values is None else [self.table, self.pre_values.table]

    @torch.compiler.disable  # nor may torch.compile trace into the beginning of a coroutine, see ``Underway.advance``
    async def look_up(self, x_sbD: Tensor) -> Tensor:
        """[s, b, D] -> [s, b, D]. Collective; the order of sums and draws does not depend on what is done meanwhile."""
        x_sbD = self.place.share.enter(x_sbD)
        kept_sbD = self._draw_kept(x_sbD)
        picks = self.retrieve(x_sbD)
        weighed = picks if self.pre_values is None else await self.pre_values.weigh(x_sbD.flatten(0, 1), picks)
        pooled_TEV = await self.table.look_up(weighed)
        out_sbD = self.projection(pooled_TEV).view(x_sbD.shape)
        if kept_sbD is not None:
            out_sbD = out_sbD.masked_fill(~kept_sbD, 0) / (1 - self.dropout)
        if self.observer is not None:
            self.observer(picks, out_sbD)
        return self.place.share.leave(self._with_penalty(out_sbD))

    def retrieve(self, x_sbD: Tensor) -> Picks:
        """The picks of this rank's tokens."""
        addresses = self.addresses.of_grid(self.retrieval.shape.grid_side)
        rows_TK, blocks_TK, scores_hTK = self.retrieval.pick(x_sbD, addresses)
        return Picks(rows_TK, blocks_TK, scores_hTK.to(self.table.weight.dtype))

    def _draw_kept(self, x_sbD: Tensor) -> Tensor | None:
        """Which entries of the output dropout keeps. Drawn first, since blocks that run meanwhile may draw as well."""
        if self.dropout == 0 or not self.training:
            return None
        # each tensor-parallel rank has tokens of its own, so the numbers must differ
        with get_cuda_rng_tracker().fork():
            return torch.empty_like(x_sbD, dtype=torch.bool).bernoulli_(1 - self.dropout)

    @property
    def summed_core(self) -> Tensor | None:
        """Sum of the score cores [H, r, r], which chooses the slots; None where the variant has no core."""
        return widened(self.retrieval.core.weight).sum(dim=1) if isinstance(self.retrieval, TuckerRetrieval) else None

    def begin_step(self) -> None:
        """Once before the micro-batches of an optimizer step: refresh u and t."""
        if isinstance(self.retrieval, TuckerRetrieval):
            self.retrieval.core.refresh()

    def penalty(self) -> Tensor | None:
        """The auxiliary loss of this layer; None where the variant has no core or its weight is 0."""
        weight, margin = self.auxiliary
        if weight == 0 or not isinstance(self.retrieval, TuckerRetrieval):
            return None
        return core_penalty(self.retrieval.core.weight, weight, margin)

    def _with_penalty(self, out_sbD: Tensor) -> Tensor:
        penalty = self.penalty() if torch.is_grad_enabled() else None
        return out_sbD if penalty is None else attach_loss(out_sbD, penalty, self.place.loss_scale)

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), metadata: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Dense parts are replicated over tensor and data parallel; the table describes its own shard."""
        state = self.state_dict(prefix="", keep_vars=True)
        dense = {name: value for name, value in state.items() if not _of_table(name)}
        sharded = make_sharded_tensors_for_checkpoint(
            dense, prefix, sharded_offsets=sharded_offsets, tp_group=self.place.share.tp, dp_cp_group=self.place.dp_cp
        )
        sharded |= self.table.sharded_state_dict(f"{prefix}table.", sharded_offsets, metadata)
        if self.pre_values is not None:
            sharded |= self.pre_values.table.sharded_state_dict(f"{prefix}pre_values.table.", sharded_offsets, metadata)
        return sharded


def _of_table(name: str) -> bool:
    return name.endswith("table.weight")
