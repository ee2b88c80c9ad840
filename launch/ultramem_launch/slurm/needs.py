"""What a job needs of its nodes: a file beside the config, so that the checks read no YAML and no command line."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from ultramem_megatron.files import write_json


@dataclass(frozen=True, kw_only=True, slots=True)
class Needs:
    """``job/needs.json``."""

    gpus_per_node: int
    free_bytes: int
    all_reduce_bytes_per_second: float


def save_needs(folder: Path, needs: Needs) -> None:
    """For the checks on the nodes."""
    write_json(folder / "needs.json", asdict(needs))


def read_needs(folder: Path) -> Needs:
    """What ``save_needs`` wrote."""
    return Needs(**json.loads((folder / "needs.json").read_text()))
