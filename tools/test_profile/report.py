"""What was recorded, added up: by cause, by folder of tests, by test, by program started."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REST = "the tests' own work"


@dataclass
class Profile:
    """One run of the tests. Seconds throughout."""

    tests: list[dict[str, Any]] = field(default_factory=list)
    fixtures: list[dict[str, Any]] = field(default_factory=list)
    processes: list[dict[str, Any]] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """From the first test's begin to the last one's end."""
        begin = min(test["began"] for test in self.tests)
        return max(test["began"] + test["seconds"] for test in self.tests) - begin

    @property
    def busy_seconds(self) -> dict[str, float]:
        """In tests, by worker."""
        busy: Counter[str] = Counter()
        for test in self.tests:
            busy[test["worker"]] += test["seconds"]
        return dict(sorted(busy.items()))

    @property
    def processor_seconds(self) -> float:
        """Of the workers and all children that they waited for; jobs on Slurm are nobody's children."""
        return sum(test["processor_seconds"] for test in self.tests)


def read(folder: Path) -> Profile:
    """Every record in ``folder``; a torn last line of a killed process is passed over."""
    profile = Profile()
    for file in sorted(folder.glob("*.jsonl")):
        for line in file.read_text().splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue
            kind = "tests" if "test" in record else "fixtures" if "fixture" in record else "processes"
            getattr(profile, kind).append(record)
    return profile


def by_cause(profile: Profile) -> dict[str, dict[str, float]]:
    """Seconds of the workers, of forked ranks and of programs, by what they did."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for test in profile.tests:
        found["workers"].update(test["causes"])
        found["workers"].update(test["before"])
        found["workers"][REST] += test["seconds"] - sum(test["causes"].values())
    for process in profile.processes:
        kind = "forks" if process["process"] == "fork" else "programs"
        found[kind].update(process["causes"])
        found[kind][REST] += process["seconds"] - sum(process["causes"].values())
    return {kind: dict(causes.most_common()) for kind, causes in found.items()}


def by_folder(tests: Iterable[dict[str, Any]]) -> list[tuple[str, int, float, float]]:
    """Folder of tests, how many, seconds, processor seconds; the longest first."""
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for test in tests:
        found["/".join(test["test"].split("/")[:2])].append(test)
    sums = [
        (name, len(group), sum(t["seconds"] for t in group), sum(t["processor_seconds"] for t in group))
        for name, group in found.items()
    ]
    return sorted(sums, key=lambda row: -row[2])


def by_file(tests: Iterable[dict[str, Any]]) -> list[tuple[str, int, float, float]]:
    """As ``by_folder``, by file."""
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for test in tests:
        found[test["test"].partition("::")[0]].append(test)
    sums = [
        (name, len(group), sum(t["seconds"] for t in group), sum(t["processor_seconds"] for t in group))
        for name, group in found.items()
    ]
    return sorted(sums, key=lambda row: -row[2])


def by_program(profile: Profile) -> list[tuple[str, int, float, float]]:
    """What was started, how often, seconds, processor seconds."""
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for process in profile.processes:
        words = process["arguments"]
        name = "a fork" if process["process"] == "fork" else " ".join(Path(word).name for word in words[:2])
        found[name].append(process)
    sums = [
        (name[:60], len(group), sum(p["seconds"] for p in group), sum(p["processor_seconds"] for p in group))
        for name, group in found.items()
    ]
    return sorted(sums, key=lambda row: -row[2])
