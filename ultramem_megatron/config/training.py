"""How long and how much at a time."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from ultramem_megatron.config.check import Between, Steps, StepsOrNever, require_divides, require_ranges

_SEEDS = 2**32
"""NumPy's legacy generator, which orders the samples, takes no larger ones."""


class Precision(StrEnum):
    """Type of weights and activations. Gradients, master weights and moments are fp32 in either case."""

    BF16 = "bf16"
    FP32 = "fp32"


class Recompute(StrEnum):
    """What the backward pass computes again instead of having it kept. Lookups of memory layers never are: their
    collectives would run twice."""

    NONE = "none"
    """Everything is kept."""
    SELECTIVE = "selective"
    """The scores of attention are not (arXiv 2205.05198, section 5)."""
    FULL = "full"
    """Of each block only its input is kept."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingConfig:
    """Steps, batch sizes, precision, validation."""

    steps: Steps = 200
    """Optimizer steps of the whole run. The order of samples does not depend on it."""

    global_batch_size: Annotated[int, Between(1, 2**17)] = 16
    """Samples of one optimizer step, over all ranks."""

    micro_batch_size: Annotated[int, Between(1, 2**16)] = 4
    """Samples of one forward pass on one data-parallel rank."""

    seed: Annotated[int, Between(0, _SEEDS - 1)] = 1234
    """Seed of weights and of the order of samples."""

    precision: Precision = Precision.BF16
    """Type of weights and activations."""

    recompute: Recompute = Recompute.NONE
    """Less memory for more compute: ``none``, ``selective`` (scores of attention) or ``full`` (whole blocks)."""

    deterministic: bool = False
    """The same bits each time on GPUs, too, in the same layout and on the same devices: what PyTorch adds up in any
    order is done in a fixed one, or refused. The kernels of memory layers always are so, and so is a run on CPUs."""

    eval_interval: StepsOrNever = 100
    """Validate every so many steps, and at the end; 0 for never."""

    eval_batches: Annotated[int, Between(1, 10_000)] = 8
    """Global batches of one validation, per data source."""

    stop_after: StepsOrNever = 0
    """Save and end after this step as if asked by a signal, the schedule unchanged; 0 for never."""

    def micro_batches(self, data_ranks: int) -> int:
        """Forward passes of one data-parallel rank in an optimizer step."""
        return self.global_batch_size // (self.micro_batch_size * data_ranks)

    def __post_init__(self) -> None:
        require_ranges("training", self)
        require_divides(
            "training.micro_batch_size",
            self.micro_batch_size,
            "training.global_batch_size",
            self.global_batch_size,
        )
