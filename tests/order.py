"""Which test comes when: whole files, the longest first, so that all workers are busy to the end."""

import json
from collections import OrderedDict
from pathlib import Path

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

SECONDS = Path(__file__).with_name("seconds.json")
"""What each file took once (`tools/profile_tests --write-order`). An old one costs balance, and nothing else."""
UNKNOWN_SECONDS = 5.0
JOBS = "tests/slurm/"
"""They run beside all others from the begin on: who looks at them last waits least."""


def file_of(nodeid: str) -> str:
    """Of a test, below the repository."""
    return nodeid.partition("::")[0]


def rank_of(file: str, seconds: dict[str, float]) -> tuple[bool, float]:
    """What files are sorted by."""
    return file.startswith(JOBS), -seconds.get(file, UNKNOWN_SECONDS)


class LongestFilesFirst(LoadFileScheduling):
    """A file is one worker's: what its tests share is made once."""

    def __init__(self, config: pytest.Config, log: Producer) -> None:
        config.option.loadscopereorder = False  # it would begin with the files of the most tests
        super().__init__(config, log)

    def schedule(self) -> None:
        """Hand out the first files; the others follow as workers come free."""
        super().schedule()
        seconds = json.loads(SECONDS.read_text())
        self.workqueue = OrderedDict(sorted(self.workqueue.items(), key=lambda unit: rank_of(unit[0], seconds)))
