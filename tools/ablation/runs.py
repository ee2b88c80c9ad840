"""Which runs a study consists of, and what each left on disk."""

import json
import os
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ultramem_launch.configs import load_config
from ultramem_megatron.config.load import load_run_config, to_plain
from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.data.recall.registry import tasks_named
from ultramem_megatron.errors import ConfigError, LaunchError
from ultramem_megatron.files import write_json
from ultramem_megatron.metrics.catalogue import LOSS
from ultramem_megatron.monitor.records import METRICS_FILE, decode_record

FIRST_SEED = 1234
RECORD_FILE = "ablate.json"
TAIL_BYTES = 2**16  # some twenty records


@dataclass(frozen=True, kw_only=True)
class Run:
    """One recipe with one seed."""

    label: str
    """The recipe in folders and tables."""
    recipe: str
    """CONFIG of ``ultramem pretrain``."""
    number: int
    """0 for the first seed."""
    settings: tuple[str, ...]
    """``key=value``, the seed among them."""
    folder: Path
    config: RunConfig

    @property
    def name(self) -> str:
        return f"{self.label} seed{self.number}"

    @property
    def steps(self) -> int:
        return self.config.training.steps

    @property
    def log(self) -> Path:
        """Output of all its processes."""
        return self.folder / "ablate.log"

    @property
    def is_trained(self) -> bool:
        """Whether a process of it ended well after the last step."""
        return bool(self.record.get("trained")) and self.last_step >= self.steps

    @property
    def last_step(self) -> int:
        """The last step reported; 0 before the first."""
        return int(max((record["step"] for record in self.newest_records()), default=0))

    @property
    def record(self) -> dict[str, Any]:
        """What ``write_record`` wrote last; empty before."""
        file = self.folder / RECORD_FILE
        record: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
        return record

    def write_record(self, **facts: Any) -> None:
        """Keep how the last process of this run ended and on what machine: metrics.jsonl does not say."""
        write_json(self.folder / RECORD_FILE, facts)

    def answer(self, task: str) -> dict[str, Any] | None:
        """What ``ultramem eval --task TASK`` left; None without, or when it was asked before the last step."""
        file = self.folder / "eval" / f"{task}.json"
        found: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
        return found if found.get("step") == self.steps else None

    def newest_records(self) -> list[dict[str, float]]:
        """The last records of training steps, without reading all of a long file."""
        file = self.folder / METRICS_FILE
        if not file.is_file():
            return []
        with file.open("rb") as lines:
            lines.seek(max(0, file.stat().st_size - TAIL_BYTES), os.SEEK_SET)
            records = [decode_record(line) for line in lines]  # the first may be cut; it decodes to None
        return [record for record in records if record is not None and LOSS.name in record]


@dataclass(frozen=True, kw_only=True)
class Study:
    """All that ``tools/ablate`` was asked for."""

    out: Path
    recipes: tuple[str, ...]
    baseline: str
    """A label."""
    seeds: int
    settings: tuple[str, ...]
    tasks: tuple[str, ...]
    command: str
    """What a user types to get the table again."""
    from_disk: bool = False
    """Report only: the configs are those that the runs were made with, whatever the recipes say now."""

    @cached_property
    def labels(self) -> tuple[str, ...]:
        return tuple(label_of(recipe) for recipe in self.recipes)

    @cached_property
    def runs(self) -> tuple[Run, ...]:
        """Seed by seed, so that all recipes can be compared before the last seed is done."""
        return tuple(self._run(recipe, number) for number in range(self.seeds) for recipe in self.recipes)

    def runs_of(self, label: str) -> list[Run]:
        return [run for run in self.runs if run.label == label]

    def check(self) -> None:
        """Refuse what cannot work, before anything is started.

        Raises:
            UltraMemError: A recipe or task is unknown, a recipe is named twice, the baseline is not among them, a
                setting is wrong, a config needs more than one process, or a folder holds a run with other settings.
        """
        tasks_named(self.tasks)
        twice = [label for label, count in Counter(self.labels).items() if count > 1]
        if twice:
            raise LaunchError(
                f"{twice[0]} is named twice in {' '.join(self.recipes)}, and each recipe gets one folder of --out; "
                "name each once, and give YAML files different names"
            )
        if self.baseline not in self.labels:
            raise LaunchError(f"--baseline {self.baseline} is not among the recipes ({', '.join(self.labels)}); add it")
        if any(setting.startswith("training.seed=") for setting in self.settings):
            raise LaunchError(f"--set training.seed: seeds are {FIRST_SEED}, {FIRST_SEED + 1}, ...; use --seeds")
        for run in self.runs:
            run.config.check_world_size(1)
            if not self.from_disk:
                _refuse_other_settings(run)

    def _run(self, recipe: str, number: int) -> Run:
        label = label_of(recipe)
        folder = self.out / label / f"seed{number}"
        settings = (f"training.seed={FIRST_SEED + number}", *self.settings)
        saved = folder / "config.yaml"
        config = load_run_config(saved) if self.from_disk and saved.is_file() else load_config(recipe, settings)
        return Run(label=label, recipe=recipe, number=number, settings=settings, folder=folder, config=config)


def label_of(recipe: str) -> str:
    """A shipped recipe as it is typed, a YAML file by its name."""
    path = Path(recipe)
    return path.stem if path.suffix in (".yaml", ".yml") or path.is_file() else recipe


def _refuse_other_settings(run: Run) -> None:
    saved = run.folder / "config.yaml"
    if not saved.is_file() or not run.last_step:
        return
    then, now = _flat(load_run_config(saved)), _flat(run.config)
    changed = next((key for key in now if now[key] != then[key]), None)
    if changed:
        raise ConfigError(
            f"{run.folder} holds a run with {changed} = {then[changed]}, and now it would be {now[changed]}: its "
            "numbers would stand in the wrong table; name another --out, remove that folder, or use --report-only"
        )


def _flat(config: RunConfig) -> dict[str, Any]:
    return {f"{section}.{key}": value for section, fields in to_plain(config).items() for key, value in fields.items()}
