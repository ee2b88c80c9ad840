"""When checkpoints are written and how many are kept."""

from dataclasses import dataclass
from typing import Annotated

from ultramem_megatron.config.check import MOST_STEPS, Between, require_path, require_ranges


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointConfig:
    """Checkpoints live in ``<run-dir>/checkpoints``."""

    interval: Annotated[int, Between(0, MOST_STEPS, "at the end alone")] = 100
    """Save every so many steps, and at the end; 0 for only at the end or on a signal."""

    keep: Annotated[int, Between(1, 10**6)] = 2
    """Newest checkpoints kept."""

    async_save: bool = True
    """Write beside training, which stands still for a copy of the state alone; needs host memory for that copy (all
    that the rank saves: weights, fp32 master weights and moments). False: training waits until all is written."""

    load: str = ""
    """Start from the newest checkpoint of this folder when the run has none of its own yet."""

    def __post_init__(self) -> None:
        require_ranges("checkpoint", self)
        require_path("checkpoint.load", self.load)
