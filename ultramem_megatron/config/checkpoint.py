"""When checkpoints are written and how many are kept."""

from dataclasses import dataclass

from ultramem_megatron.config.check import require_positive
from ultramem_megatron.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointConfig:
    """Checkpoints live in ``<run-dir>/checkpoints``."""

    interval: int = 100
    """Save every so many steps, and at the end; 0 for only at the end or on a signal."""

    keep: int = 2
    """Newest checkpoints kept."""

    async_save: bool = True
    """Write beside training, which stands still for a copy of the state alone; needs host memory for that copy (all
    that the rank saves: weights, fp32 master weights and moments). False: training waits until all is written."""

    load: str = ""
    """Start from the newest checkpoint of this folder when the run has none of its own yet."""

    def __post_init__(self) -> None:
        require_positive("checkpoint.keep", self.keep)
        if self.interval < 0:
            raise ConfigError(f"checkpoint.interval = {self.interval} must be 0 or a number of steps")
