"""Degrees of parallelism, in Megatron's words."""

from dataclasses import dataclass
from typing import Annotated

from ultramem_megatron.config.check import Between, Seconds, require_ranges
from ultramem_megatron.errors import ConfigError

Ranks = Annotated[int, Between(1, 4096)]


@dataclass(frozen=True, kw_only=True, slots=True)
class ParallelismConfig:
    """How the ranks are laid out; what is left over is data parallel."""

    tensor: Ranks = 1
    """Tensor-parallel ranks."""

    pipeline: Ranks = 1
    """Pipeline stages."""

    virtual_pipeline: Ranks = 1
    """Model chunks on each pipeline stage (interleaved schedule)."""

    sequence: bool = False
    """Megatron's sequence parallelism; needs ``tensor`` above 1."""

    expert: Ranks = 1
    """Ranks that share the experts of a mixture-of-experts model, out of the data-parallel ones."""

    timeout_seconds: Seconds = 1800.0
    """How long a rank waits for the others in a collective; long enough for what rank 0 does alone, such as the index
    of a large corpus."""

    def __post_init__(self) -> None:
        require_ranges("parallelism", self)
        if self.virtual_pipeline > 1 and self.pipeline == 1:
            raise ConfigError(
                f"parallelism.virtual_pipeline = {self.virtual_pipeline} needs parallelism.pipeline above 1"
            )
        if self.sequence and self.tensor == 1:
            raise ConfigError("parallelism.sequence = true needs parallelism.tensor above 1")
