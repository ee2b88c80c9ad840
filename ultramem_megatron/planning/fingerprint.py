"""Where, when and with what a number was measured."""

from typing import Any

from pydantic import BaseModel, ConfigDict


class Fingerprint(BaseModel):
    """Of a machine, its software and the processes that measured together."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hardware: str
    """Name of the GPU, or of the CPU with its usable cores."""

    hosts: int
    """Machines."""

    processes: int
    """Ranks that took part: on a machine with fewer cores they wait for each other."""

    backend: str
    """``nccl`` or ``gloo``."""

    versions: dict[str, str]
    """Of python, torch, and on GPUs of CUDA, NCCL and the driver."""

    date: str
    """Of the end of the measurement, ISO 8601, UTC."""

    def differences(self, other: "Fingerprint") -> list[str]:
        """What differs but the date, in words: ``torch 2.13.0 there, 2.9.1 here``; ``other`` is here."""
        fields = ("hardware", "hosts", "processes", "backend")
        pairs: list[tuple[str, Any, Any]] = [(name, getattr(self, name), getattr(other, name)) for name in fields]
        names = dict.fromkeys([*self.versions, *other.versions])
        pairs += [(name, self.versions.get(name, "none"), other.versions.get(name, "none")) for name in names]
        return [f"{name} {there} there, {here} here" for name, there, here in pairs if there != here]
