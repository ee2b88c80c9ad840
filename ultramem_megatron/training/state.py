"""Everything that a running training job holds."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import ChainedOptimizer

from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.data.batch import Batch, BatchSampler, SampleRange, skip_over
from ultramem_megatron.data.token_source import TokenSource
from ultramem_megatron.model.build import UltraMemModel
from ultramem_megatron.optim.schedule import RateSchedule
from ultramem_megatron.parallel.groups import Groups
from ultramem_megatron.parallel.stage_messages import StageMessages
from ultramem_megatron.planning.plan import Plan
from ultramem_megatron.training.guard import Guard


@dataclass(kw_only=True, slots=True)
class TrainState:
    """The run's parts, and how far it is."""

    config: RunConfig
    plan: Plan
    groups: Groups
    chunks: list[UltraMemModel]
    """This rank's model chunks."""
    ddp: list[DistributedDataParallel]
    """The same, wrapped."""
    messages: StageMessages
    """To the neighbours in the pipeline."""
    optimizer: ChainedOptimizer
    schedule: RateSchedule
    step: int = 0
    """Optimizer steps done."""

    consumed_samples: int = 0
    """Samples that the steps so far have read; the next step begins here, whatever its batch size."""
    consumed_tokens: int = 0
    """Tokens that the steps so far have read."""

    guard: Guard = field(default_factory=Guard)
    """Which steps were bad, and what is left out."""

    @property
    def next_sample(self) -> int:
        """First sample of the next step."""
        size = self.config.training.global_batch_size
        return skip_over(self.consumed_samples, size, self.guard.skipped_samples)

    def training_batches(self, source: TokenSource) -> Iterator[list[Batch]]:
        """``batches`` of the steps to come."""
        return self.batches(source, self.consumed_samples, self.guard.skipped_samples)

    def batches(
        self, source: TokenSource, start: int = 0, skipped: Sequence[SampleRange] = ()
    ) -> Iterator[list[Batch]]:
        """This rank's micro-batches of each global batch of ``source``, without end, from sample ``start`` on."""
        training, groups = self.config.training, self.groups
        sampler = BatchSampler(
            source,
            global_batch_size=training.global_batch_size,
            micro_batch_size=training.micro_batch_size,
            dp_rank=groups.data_rank,
            dp_size=groups.data_ranks,
            consumed_samples=start,
            skipped=skipped,
        )
        return iter(sampler)

    def advance(self) -> None:
        """One more step is done."""
        self.step += 1
        self.consumed_samples = self.next_sample + self.config.training.global_batch_size
        self.consumed_tokens += self.config.training.global_batch_size * self.config.model.seq_length


@dataclass(frozen=True, kw_only=True, slots=True)
class StepResult:
    """What one optimizer step reports, the same on every rank."""

    step: int
    loss: float
    """Mean over the tokens of the global batch, in nats."""
    gradient_norm: float
    """Of all parameters together, before clipping."""
    learning_rate: float
    """Of the dense parameters, as the optimizer had it in this step."""
    value_learning_rate: float | None
    """Of value tables; None without them."""
    bad: str = ""
    """Why nothing was updated; empty for a good step."""
