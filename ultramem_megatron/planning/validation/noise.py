"""How well the measurement itself would choose: beyond that no model can be told from another."""

from collections.abc import Sequence
from dataclasses import dataclass

from ultramem_megatron.planning.validation.ranking import regret_fraction
from ultramem_megatron.planning.validation.results import Measurement


@dataclass(frozen=True, slots=True)
class NoiseFloor:
    """Regrets of taking the strategy that was best in half of the repeats, by the times of the other half."""

    mean_regret_fraction: float
    worst_regret_fraction: float


def noise_floor(groups: Sequence[Sequence[Measurement]]) -> NoiseFloor | None:
    """Over shapes, either half choosing once. None where a measurement does not tell the halves apart.

    Args:
        groups: The measurements of each shape.
    """
    regrets = []
    for rivals in groups:
        known = [one.halves for one in rivals if one.halves is not None]
        if len(known) < len(rivals):
            return None
        if len(rivals) > 1:
            first, second = zip(*known, strict=True)
            regrets += [regret_fraction(first, second), regret_fraction(second, first)]
    return NoiseFloor(sum(regrets) / len(regrets), max(regrets)) if regrets else None
