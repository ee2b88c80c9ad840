"""Everything that a running training job holds."""

from dataclasses import dataclass

from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import ChainedOptimizer

from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.model.build import UltraMemModel
from ultramem_megatron.optim.schedule import RateSchedule
from ultramem_megatron.parallel.groups import Groups
from ultramem_megatron.planning.plan import Plan


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
    optimizer: ChainedOptimizer
    schedule: RateSchedule
    step: int = 0
    """Optimizer steps done."""

    consumed_samples: int = 0
    """Samples that the steps so far have read; the next step begins here, whatever its batch size."""
    consumed_tokens: int = 0
    """Tokens that the steps so far have read."""

    def advance(self) -> None:
        """One more step is done."""
        self.step += 1
        self.consumed_samples += self.config.training.global_batch_size
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
    value_learning_rate: float
