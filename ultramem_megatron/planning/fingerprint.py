"""Where, when and with what a number was measured."""

from collections.abc import Mapping

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

    def flat(self) -> dict[str, str | int]:
        """As a profile keeps it; without the date, which a profile has of its own."""
        fields: dict[str, str | int] = self.model_dump(exclude={"versions", "date"})
        return {**fields, **self.versions}

    def differences(self, other: "Fingerprint") -> list[str]:
        """What differs but the date, in words; ``other`` is here."""
        return flat_differences(self.flat(), other.flat())


def flat_differences(there: Mapping[str, str | int], here: Mapping[str, str | int]) -> list[str]:
    """What differs, in words: ``torch 2.13.0 there, 2.9.1 here``. What only one of both knows does not count."""
    return [
        f"{name} {there[name]} there, {here[name]} here" for name in there if there[name] != here.get(name, there[name])
    ]
