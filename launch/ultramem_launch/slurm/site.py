"""The site file: what is true of a cluster and not of a run, written once by whoever knows the cluster."""

import os
import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_type_hints

from ultramem_launch.slurm.request import DECIDED, OPTION_NAME
from ultramem_megatron.errors import ConfigError

SITE_VARIABLE = "ULTRAMEM_SITE"
DEFAULT_SITE = Path("~/.config/ultramem/site.yaml")

VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, kw_only=True, slots=True)
class Site:
    """Everything is optional; an empty file, or none, is plain Slurm."""

    cluster: str = "dgx-a100-80g"
    """Kind of node that is planned for where a job asks for GPUs, as in ``ultramem plan --cluster KIND``."""

    environment: dict[str, str] = field(default_factory=dict)
    """Variables of every rank: NCCL_SOCKET_IFNAME, NCCL_IB_HCA, ... None is set unless it stands here."""

    setup: list[str] = field(default_factory=list)
    """Lines of shell before anything runs, such as ``module load cuda/12.8``. Copied as they are."""

    sbatch: dict[str, str] = field(default_factory=dict)
    """Options of every job by their long name: ``account: lm``, ``exclusive: ""``. The command line's win."""

    srun: list[str] = field(default_factory=list)
    """Further options of every srun, such as ``--mpi=none``."""

    container_mounts: list[str] = field(default_factory=list)
    """With --container-image: FROM:TO, beside the run folder."""

    free_gib: float = 1.0
    """A node passes with so much room in the run folder."""

    all_reduce_gb_per_second: float = 0.0
    """Bus bandwidth that the ranks of one node must reach in an all-reduce, in 1e9 bytes/s; 0: only compare nodes."""

    def __post_init__(self) -> None:
        for name in self.environment:
            if not VARIABLE_NAME.fullmatch(name):
                raise ConfigError(f'site: environment: "{name}" is no name of a variable (letters, digits, _)')
        for name in self.sbatch:
            if not OPTION_NAME.fullmatch(name):
                raise ConfigError(f'site: sbatch: "{name}" is no long option of sbatch; write account, not --account')
            if name in DECIDED:
                raise ConfigError(f"site: sbatch: {name}: {DECIDED[name]}")
        for line in self.setup:
            if "\n" in line:
                raise ConfigError(f"site: setup: one line of shell an entry, not {line!r}")


def find_site_file(named: Path | None) -> Path | None:
    """``--site``, else $ULTRAMEM_SITE, else ~/.config/ultramem/site.yaml if it is there."""
    if named is not None:
        return named
    if os.environ.get(SITE_VARIABLE):
        return Path(os.environ[SITE_VARIABLE])
    default = DEFAULT_SITE.expanduser()
    return default if default.is_file() else None


def load_site(path: Path | None) -> Site:
    """The site file, or plain Slurm.

    Raises:
        ConfigError: It is missing, no YAML, or has a key or value that cannot be.
    """
    if path is None:
        return Site()
    from ultramem_megatron.config.yaml_text import YamlError, read_yaml_file

    try:
        content = read_yaml_file(path) or {}
    except (OSError, YamlError) as error:
        raise ConfigError(f"site file {path} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"site file {path} must hold keys such as environment: and sbatch:, not a list or a word")
    known = {item.name for item in fields(Site)}
    for key in content:
        if key not in known:
            raise ConfigError(f'site file {path}: unknown key "{key}"; known are {", ".join(sorted(known))}')
    hints = get_type_hints(Site)
    return Site(**{key: _typed(path, key, hints[key], value) for key, value in content.items()})


def _typed(path: Path, key: str, kind: Any, value: Any) -> Any:
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if kind is str and isinstance(value, str):
        return value
    if kind == list[str] and isinstance(value, list):
        return [str(item) for item in value]
    if kind == dict[str, str] and isinstance(value, dict):
        return {str(name): "" if item is None else str(item) for name, item in value.items()}
    what = {float: "a number", str: "a word", list[str]: "a list of lines"}.get(kind, "names with values")
    raise ConfigError(f"site file {path}: {key} = {value!r} must be {what}")
