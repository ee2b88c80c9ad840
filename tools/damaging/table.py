"""Results for people: a letter for each case, and each fault in words."""

from collections import Counter
from collections.abc import Sequence

from damaging.damages import Damage
from damaging.verdict import Row, Verdict

LETTERS = {
    Verdict.REFUSED: "r",
    Verdict.NAMED: "n",
    Verdict.TOLD: "t",
    Verdict.SAME: ".",
    Verdict.SILENT: "S",
    Verdict.UNNOTICED: "U",
    Verdict.TRACEBACK: "T",
    Verdict.FAILED: "F",
    Verdict.HUNG: "H",
}
ABSENT = " "


def as_text(rows: Sequence[Row]) -> str:
    """The whole table."""
    verbs = list(dict.fromkeys(row.verb for row in rows))
    files = sorted({row.file for row in rows})
    letters = {row.key: LETTERS[row.verdict] for row in rows}
    width = max(map(len, files), default=0)
    columns = {verb: max(len(verb), len(Damage)) for verb in verbs}
    lines = [f"A letter for each of {', '.join(Damage)}, in this order:"]
    lines += [", ".join(f"{letter} {verdict}" for verdict, letter in LETTERS.items()), ""]
    lines.append("  ".join(["file".ljust(width), *(verb.ljust(size) for verb, size in columns.items())]).rstrip())
    for file in files:
        cells = ["".join(letters.get((file, damage, verb), ABSENT) for damage in Damage) for verb in verbs]
        padded = (cell.ljust(size) for cell, size in zip(cells, columns.values(), strict=True))
        lines.append("  ".join([file.ljust(width), *padded]).rstrip())
    return "\n".join([*lines, "", *_faults(rows), summary(rows), ""])


def _faults(rows: Sequence[Row]) -> list[str]:
    return [
        f"{row.verdict}: {row.verb} with {row.file} {row.damage}: {row.said}" for row in rows if row.verdict.is_fault
    ]


def summary(rows: Sequence[Row]) -> str:
    """One line."""
    counts = Counter(row.verdict for row in rows)
    named = ", ".join(f"{counts[verdict]} {verdict}" for verdict in Verdict)
    return f"{len(rows)} cases: {named}; {sum(row.verdict.is_fault for row in rows)} faults"
