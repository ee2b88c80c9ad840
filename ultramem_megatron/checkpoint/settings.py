"""The settings of a run beside those with which its checkpoint was written. No torch here."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ultramem_megatron.checkpoint.manifest import Manifest
from ultramem_megatron.checkpoint.names import shown
from ultramem_megatron.config.at_resume import AT_RESUME, AtResume, Rule, Settings
from ultramem_megatron.config.load import to_plain
from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class ChangedSetting:
    """One that is another than it was."""

    field: str
    """``section.name``."""
    old: Any
    new: Any
    what: AtResume
    why: str
    """Of what has no effect, or takes it in part; else empty."""

    def __str__(self) -> str:
        if self.what is AtResume.WITHOUT_EFFECT:
            return f"{self.field} = {self.new} instead of {self.old} has no effect: {self.why}"
        return f"{self.field} = {self.new} from here on, {self.old} before" + (f" ({self.why})" if self.why else "")

    def as_record(self) -> dict[str, Any]:
        """Plain values, for ``events.jsonl``."""
        return {"field": self.field, "old": self.old, "new": self.new, "takes_effect": self.what != "without effect"}


def check_same_model(folder: Path, manifest: Manifest, config: dict[str, Any]) -> None:
    """Refuse a checkpoint of another model.

    Args:
        folder: The checkpoint.
        manifest: Of it.
        config: Of the run, plain.

    Raises:
        CheckpointError: Names the first setting that may not differ and does, with both values.
    """
    for change in _differences(manifest.config, config):
        if change.what is AtResume.REFUSED:
            raise CheckpointError(
                f"checkpoint {folder} is of another model: {change.field} = {shown(change.old)} there and {change.new} "
                "here; use the run's own config, or another run folder"
            )


def changed_settings(folder: Path, manifest: Manifest, config: dict[str, Any], root: Path) -> list[ChangedSetting]:
    """What differs and is not refused.

    Args:
        folder: The checkpoint that the run goes on from.
        manifest: Of it.
        config: Of the run, plain.
        root: The run's own folder of checkpoints.
    """
    is_own = folder.parent.resolve() == root.resolve()
    changes = _differences(manifest.config, config)
    # a first start that names another run's checkpoints: that is why they differ
    return [change for change in changes if is_own or change.field != "checkpoint.load"]


def _differences(there: Settings, here: Settings) -> list[ChangedSetting]:
    """In the order of the table; ``memory.variant`` first, because sizes of absent memory layers do not matter."""
    default = to_plain(RunConfig())  # a checkpoint from before a setting existed has what is its default now
    found = []
    for name in sorted(AT_RESUME, key=lambda name: name != "memory.variant"):
        section, field = name.split(".")
        old, new = _section(there, section).get(field, default[section][field]), here[section][field]
        if old != new:
            found.append(_change(name, old, new, AT_RESUME[name], here))
    return found


def _section(settings: Settings, name: str) -> Mapping[str, Any]:
    section = settings.get(name, {})
    return section if isinstance(section, Mapping) else {}


def _change(name: str, old: Any, new: Any, rule: Rule, here: Settings) -> ChangedSetting:
    if rule.part is not None and not rule.part.is_there(here):
        return ChangedSetting(name, old, new, AtResume.WITHOUT_EFFECT, rule.part.without)
    return ChangedSetting(name, old, new, rule.what, rule.why)
