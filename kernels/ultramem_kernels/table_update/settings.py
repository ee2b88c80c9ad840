"""The numbers of an AdamW step."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AdamW:
    """Loshchilov and Hutter, arXiv 1711.05101; decay is decoupled, moments are corrected for their start."""

    learning_rate: float
    beta1: float
    beta2: float
    epsilon: float
    weight_decay: float

    def corrections(self, step: int) -> tuple[float, float]:
        """``1 - beta ** step`` of both moments; ``step`` counts from 1."""
        return 1 - self.beta1**step, 1 - self.beta2**step
