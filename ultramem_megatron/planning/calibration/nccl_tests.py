"""What NVIDIA's nccl-tests print -> points. Many sites have these measurements already.

Read is the text of ``all_gather_perf`` and its siblings: the ranks from the lines ``#  Rank  0 ...``, and of each size
the out-of-place time. Not every version prints which test it was; then the file's name must say it.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from ultramem_megatron.errors import PlanError
from ultramem_megatron.planning.calibration.schedule import network_bytes
from ultramem_megatron.planning.profile import Collective, FitPoint, Level

TESTS = {
    "all_gather": Collective.ALL_GATHER,
    "reduce_scatter": Collective.REDUCE_SCATTER,
    "alltoall": Collective.ALL_TO_ALL,
    "all_reduce": Collective.ALL_REDUCE,
}
_RANK = re.compile(r"^#\s+Rank\s+\d+\b.*\bon\s+(\S+)\s+device", re.MULTILINE)
_ROW = re.compile(r"^\s*(\d+)\s+\d+\s+\w+\s+\w+\s+-?\d+\s+([\d.]+)\s", re.MULTILINE)
MICROSECOND = 1e-6


def read_nccl_tests(path: Path) -> list[FitPoint]:
    """The points of one file; each second size is held out.

    Raises:
        PlanError: The file cannot be read, or it does not say which test it was, of how many ranks, or its times.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(f"--nccl-tests {path} cannot be read ({error}); name the text that a test printed") from None
    collective = _collective(text, path)
    hosts = _RANK.findall(text)
    if len(hosts) < 2:
        raise PlanError(
            f'--nccl-tests {path} names {len(hosts)} ranks in lines "#  Rank  0 ... on HOST device ..."; give the '
            "whole output of a test over at least 2 ranks, its head included"
        )
    rows = [(int(size), float(time)) for size, time in _ROW.findall(text)]
    rows = sorted(row for row in rows if min(row) > 0)
    if not rows:
        raise PlanError(f"--nccl-tests {path} has no lines of sizes and times; give the whole output of a test")
    return _points(collective, rows, hosts)


def _collective(text: str, path: Path) -> Collective:
    for where in (text, path.name):
        for name, collective in TESTS.items():
            if f"{name}_perf" in where or (where is path.name and name in where):
                return collective
    raise PlanError(
        f"--nccl-tests {path} does not say which collective it is of; put the test into its name, as in "
        f"{'.txt, '.join(TESTS)}.txt"
    )


def _points(collective: Collective, rows: Sequence[tuple[int, float]], hosts: Sequence[str]) -> list[FitPoint]:
    ranks, nodes = len(hosts), len(set(hosts))
    level = Level.NODE if nodes == 1 else Level.NETWORK
    # nccl-tests, doc/PERFORMANCE.md: bus bandwidth over algorithm bandwidth
    factor = (ranks - 1) / ranks * (2 if collective is Collective.ALL_REDUCE else 1)
    points = []
    for index, (size, microseconds) in enumerate(rows):
        sent = size * factor
        points.append(
            FitPoint(
                path=f"{level}.{collective}",
                ranks=ranks,
                num_bytes=sent if nodes == 1 else network_bytes(collective, sent, ranks, ranks // nodes),
                seconds=microseconds * MICROSECOND,
                held_out=index % 2 == 1,
            )
        )
    return points
