"""Figure 9 of the UltraMem paper as numbers: where its two formulas break even; and the same map by predicted time."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ultramem_megatron.config.memory import GroupPlacement, PartitionName
from ultramem_megatron.planning.cluster import ClusterSpec
from ultramem_megatron.planning.comm_cost import LookupShape
from ultramem_megatron.planning.lookup_time import lookup_time
from ultramem_megatron.planning.paper_cost import paper_break_even_ranks, paper_break_even_value_dim
from ultramem_megatron.planning.placement import mem_shape

RANKS = tuple(2**power for power in range(1, 11))
TOP_M = (16, 32, 84)
"""All heads together."""
PUBLISHED_SHAPES = ((512, 32), (768, 70), (1024, 84))
"""(value_dim, picks) of the paper's three models."""
WIDTHS = (64, 128, 256, 512, 1024, 2048, 4096)
_SPLITS = (PartitionName.NUMBER_WISE, PartitionName.DIMENSION_WISE)


@dataclass(frozen=True, slots=True)
class MapPoint:
    """Number-wise over dimension-wise, at one number of ranks and one width."""

    ranks: int
    value_dim: int
    seconds_ratio: float
    """Forward and backward of a lookup, before anything hides them: above 1, dimension-wise is faster; NaN where the
    ranks do not divide the width."""


def break_even_widths(picks: int, expansion: int = 1, cores: int = 1) -> dict[int, float]:
    """P -> v*, the row width above which dimension-wise sends less."""
    return {ranks: paper_break_even_value_dim(picks, ranks, expansion, cores) for ranks in RANKS}


def time_map(cluster: ClusterSpec, tokens: int, picks: int, num_rows: int, widths: Sequence[int]) -> list[MapPoint]:
    """The paper's question asked of the time model: forward and backward on the cluster's profile, bf16.

    Args:
        cluster: Its profile and its ranks a node; groups are as large as the map says, whatever its nodes.
        tokens: T of a rank.
        picks: K.
        num_rows: N.
        widths: Dv.
    """
    points = []
    for ranks in RANKS:
        group = mem_shape(GroupPlacement.PACKED, ranks, ranks, cluster.gpus_per_node)
        for width in widths:
            shape = LookupShape(tokens=tokens, picks=picks, num_rows=num_rows, value_dim=width, element_bytes=2)
            ratio = math.nan
            if width % ranks == 0:
                times = [lookup_time(cluster.profile, split, shape, group) for split in _SPLITS]
                rows, columns = (time.forward_seconds + time.backward_seconds for time in times)
                ratio = rows / columns
            points.append(MapPoint(ranks, width, ratio))
    return points


def numbers(
    cluster: ClusterSpec, tokens: int, picks: int, num_rows: int, expansion: int, cores: int
) -> dict[str, object]:
    """What the picture shows, as plain values."""
    several = sorted({*TOP_M, picks})
    points = time_map(cluster, tokens, picks, num_rows, WIDTHS)
    return {
        "break_even_value_dim": {str(k): _plain(break_even_widths(k, expansion, cores)) for k in several},
        "break_even_ranks": {
            f"value_dim={width}, top_m={k}": paper_break_even_ranks(k, width, expansion, cores)
            for width, k in PUBLISHED_SHAPES
        },
        "time_map": {
            "profile": cluster.profile.name,
            "tokens": tokens,
            "top_m": picks,
            "num_rows": num_rows,
            "number_wise_over_dimension_wise": [
                {"ranks": p.ranks, "value_dim": p.value_dim, "seconds_ratio": p.seconds_ratio}
                for p in points
                if not math.isnan(p.seconds_ratio)
            ],
        },
    }


def _plain(widths: dict[int, float]) -> dict[str, float | None]:
    return {str(ranks): None if math.isinf(width) else width for ranks, width in widths.items()}
