"""Points of a machine whose numbers are known, as if ``ultramem calibrate`` had measured them without any noise."""

from collections.abc import Callable

from ultramem_megatron.planning.fingerprint import Fingerprint
from ultramem_megatron.planning.profile import Collective, FitPoint

LATENCY_SECONDS = 2e-4
"""Of a collective, for each rank of the group."""
BYTES_PER_SECOND = 1e9
MEMORY_RATE = 1e10
ROW_FRACTIONS = {"gather": 0.5, "scatter": 0.25, "pool_forward": 0.4, "pool_backward": 0.1}
SORT_RATE = 2e7
FP32_RATE, BF16_RATE = 8e10, 4e10
OVERLAP_SECONDS = {"products": 2.0, "collective": 1.0, "both": 2.25}
RANKS = 4
SIZES = [64 * 2**i for i in range(16)]

FINGERPRINT = Fingerprint(
    hardware="2 cores", hosts=1, processes=RANKS, backend="gloo", versions={"torch": "2.13.0"}, date="2026-11-23"
)


def point(path: str, ranks: int, num_bytes: float, seconds: float, held_out: bool = False) -> FitPoint:
    """One."""
    return FitPoint(path=path, ranks=ranks, num_bytes=num_bytes, seconds=seconds, held_out=held_out)


def collective_points(path: str, ranks: int, noise: Callable[[int], float] = lambda index: 1.0) -> list[FitPoint]:
    """alpha + S / B, times ``noise`` of the index; each second size is held out."""
    return [
        point(path, ranks, size, (ranks * LATENCY_SECONDS + size / BYTES_PER_SECOND) * noise(index), index % 2 == 1)
        for index, size in enumerate(SIZES)
    ]


def machine_points() -> list[FitPoint]:
    """All that a calibration measures."""
    found = [point("memory", RANKS, 1e6, 1e6 / MEMORY_RATE), point("launch", RANKS, 0, 3e-6)]
    found.append(point("sort", RANKS, 0, 1 / SORT_RATE))
    for index, width in enumerate((32, 64, 128, 256, 512)):
        for path, share in ROW_FRACTIONS.items():
            found.append(point(path, RANKS, width, width / MEMORY_RATE / share, index % 2 == 1))
    for side in (100, 200):
        found.append(point("gemm.bf16", RANKS, 3 * 2 * side**2, 2 * side**3 / BF16_RATE))
        found.append(point("gemm.fp32", RANKS, 3 * 4 * side**2, 2 * side**3 / FP32_RATE))
    found += [point(f"overlap.{name}", RANKS, 0, seconds) for name, seconds in OVERLAP_SECONDS.items()]
    for collective in Collective:
        for ranks in (2, 4):
            found += collective_points(f"node.{collective}", ranks)
    return found
