"""The formulas of the UltraMem paper (arXiv 2411.12364, section 4): forward only, bf16, without IVE and MCS.

Payload that one rank sends to *other* ranks. Letters as in ``comm_cost.py``.
"""

import math
from collections.abc import Mapping

from ultramem_megatron.errors import PlanError
from ultramem_megatron.planning.comm_cost import BF16_BYTES, INT32_BYTES


def paper_number_wise_bytes(tokens: int, picks: int, value_dim: int, ranks: int) -> float:
    """Forward volume of the paper, number-wise: (4 + 2 Dv) T K (P - 1) / P. UltraMem paper, section 4."""
    return (INT32_BYTES + BF16_BYTES * value_dim) * tokens * picks * (ranks - 1) / ranks


def paper_dimension_wise_bytes(
    tokens: int, picks: int, value_dim: int, ranks: int, expansion: int = 1, cores: int = 1
) -> float:
    """Forward volume of the paper, dimension-wise: (4 + 2) T K (P - 1) + 2 T Dv (P - 1) / P.

    UltraMem paper, section 4; it leaves out ``expansion`` and ``cores``, which multiply the pooled vectors and the
    scores. At their defaults this is the paper's formula.
    """
    gathered = (INT32_BYTES + BF16_BYTES * cores) * tokens * picks * (ranks - 1)
    return gathered + BF16_BYTES * tokens * expansion * value_dim * (ranks - 1) / ranks


def volume_numbers(
    tokens: int, picks: int, value_dim: int, ranks: int, expansion: int = 1, cores: int = 1
) -> dict[str, float]:
    """Both volumes and both break-even points, by name."""
    return {
        "number_wise_bytes": paper_number_wise_bytes(tokens, picks, value_dim, ranks),
        "dimension_wise_bytes": paper_dimension_wise_bytes(tokens, picks, value_dim, ranks, expansion, cores),
        "break_even_value_dim": paper_break_even_value_dim(picks, ranks, expansion, cores),
        "break_even_ranks": paper_break_even_ranks(picks, value_dim, expansion, cores),
    }


def check_volume(sizes: Mapping[str, int]) -> None:
    """Refuse sizes that no lookup has.

    Args:
        sizes: Option, with underscores -> value.

    Raises:
        PlanError: A size is below 1.
    """
    for name, value in sizes.items():
        if value < 1:
            raise PlanError(f"--{name.replace('_', '-')} = {value} cannot be; it must be at least 1")


def paper_break_even_value_dim(picks: int, ranks: int, expansion: int = 1, cores: int = 1) -> float:
    """Row width above which dimension-wise sends less by the paper's formulas (its Figure 9).

    The volumes are equal at K ((2 + h) P - 2) / (K - E). Infinite when K <= E: number-wise always sends less.
    """
    if picks <= expansion:
        return math.inf
    return picks * ((2 + cores) * ranks - 2) / (picks - expansion)


def paper_break_even_ranks(picks: int, value_dim: int, expansion: int = 1, cores: int = 1) -> float:
    """Number of ranks below which dimension-wise sends less by the paper's formulas: its Figure 9, read the other way.

    Solved for P: (v (K - E) / K + 2) / (2 + h). Below 2 where number-wise always sends less.
    """
    return (value_dim * (picks - expansion) / picks + 2) / (2 + cores)
