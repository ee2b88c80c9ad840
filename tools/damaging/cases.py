"""Which cases there are, and one after the other; results are kept as they come."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from damaging.calls import Ended, call
from damaging.damages import Damage, counterpart, damaged, files_of
from damaging.stage import DATA, FOREIGN, OURS, RUN, Stage
from damaging.verbs import Verb, all_verbs
from damaging.verdict import Row, Verdict, judge, quote

RESULTS = "results.jsonl"


@dataclass(frozen=True, slots=True)
class Case:
    """One file, what happens to it, and who meets it."""

    file: str
    """Its path in the case: ``run/...`` or ``data/...``."""
    damage: Damage
    verb: Verb

    @property
    def key(self) -> tuple[str, str, str]:
        return self.file, self.damage, self.verb.name


def choose(stage: Stage, only: Sequence[str], verbs: Sequence[str], damages: Sequence[str]) -> list[Case]:
    """All cases, or those of some files (whose path holds one of ``only``), verbs and damages."""
    chosen = []
    for file in (f"{part}/{name}" for part in (RUN, DATA) for name in files_of(stage.folder / OURS / part)):
        for verb in all_verbs():
            is_met = file.startswith(tuple(f"{part}/" for part in verb.meets)) and not verb.passes(file)
            if not is_met or (verbs and verb.name not in verbs) or (only and not any(text in file for text in only)):
                continue
            named = [damage for damage in Damage if not damages or damage in damages]
            chosen += [Case(file, damage, verb) for damage in named if _is_possible(stage, file, damage)]
    return chosen


def _is_possible(stage: Stage, file: str, damage: Damage) -> bool:
    try:
        _content(stage, file, damage)
    except LookupError:
        return False
    return True


def _content(stage: Stage, file: str, damage: Damage) -> bytes | None:
    foreign = counterpart(file, stage.folder / FOREIGN)
    return damaged((stage.folder / OURS / file).read_bytes(), damage, foreign.read_bytes() if foreign else None)


class Cases:
    """Runs them, and remembers what was done before."""

    def __init__(self, stage: Stage, limit_seconds: float) -> None:
        self._stage, self._limit_seconds = stage, limit_seconds
        self._path = stage.folder / RESULTS
        self._rows = {row.key: row for row in _read_rows(self._path)}
        self._undamaged: dict[str, str] = {}

    def open_ones(self, cases: Sequence[Case], *, again: bool) -> Iterator[Case]:
        """Those without a result, or with one that was a fault when they are to be done ``again``."""
        for case in cases:
            row = self._rows.get(case.key)
            if row is None or (again and row.verdict.is_fault):
                yield case

    def done(self, cases: Sequence[Case]) -> list[Row]:
        """Results of those that have one."""
        return [self._rows[case.key] for case in cases if case.key in self._rows]

    def run(self, case: Case) -> Row:
        """Damage a fresh copy, call the verb, and write down what came of it."""
        undamaged = self._without_damage(case.verb)
        folder = self._stage.set_up()
        content = _content(self._stage, case.file, case.damage)
        if content is None:
            (folder / case.file).unlink()
        else:
            (folder / case.file).write_bytes(content)
        ended = self._call(case.verb)
        result = case.verb.result(ended, folder) if ended.status == 0 else ""
        verdict = judge(case.verb, case.file, ended, result, undamaged)
        row = Row(case.file, case.damage, case.verb.name, verdict, ended.status, round(ended.seconds, 2), quote(ended))
        self._rows[case.key] = row
        with self._path.open("a") as lines:
            lines.write(json.dumps(dataclasses.asdict(row)) + "\n")
        return row

    def _without_damage(self, verb: Verb) -> str:
        if verb.name not in self._undamaged:
            folder = self._stage.set_up()
            ended = self._call(verb)
            if ended.status:
                raise RuntimeError(f"{verb.name} ended with {ended.status} without damage: {ended.err}{ended.out}")
            self._undamaged[verb.name] = verb.result(ended, folder)
        return self._undamaged[verb.name]

    def _call(self, verb: Verb) -> Ended:
        stage = self._stage
        return call(list(verb.arguments), stage.scratch, self._limit_seconds, folder=stage.case, until=verb.until)


def _read_rows(path: Path) -> Iterator[Row]:
    """What was done before; the last line may be torn."""
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            fields = json.loads(line)
        except json.JSONDecodeError:
            continue
        yield Row(**{**fields, "damage": Damage(fields["damage"]), "verdict": Verdict(fields["verdict"])})
