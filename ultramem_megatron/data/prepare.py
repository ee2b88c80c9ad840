"""``ultramem data prepare``: fetch, tokenizer, build and recall tasks in one call."""

from collections.abc import Sequence
from pathlib import Path

from ultramem_megatron.data.build import build
from ultramem_megatron.data.fetch import fetch
from ultramem_megatron.data.progress import Progress, silent
from ultramem_megatron.data.recall.registry import tasks_named
from ultramem_megatron.data.recall.store import add_tasks
from ultramem_megatron.data.record import FolderRecord, read_record
from ultramem_megatron.data.sources import SOURCES, sources_named
from ultramem_megatron.data.tokenizer import make_tokenizer


def prepare(
    source: str,
    raw: Path,
    folder: Path,
    vocab_size: int = 8192,
    workers: int | None = None,
    recall: Sequence[str] = (),
    facts: int | None = None,
    progress: Progress = silent,
) -> FolderRecord:
    """Make a data folder that training can read; steps that are done are skipped.

    Args:
        source: A set (``quickstart``, ``core``) or one source.
        raw: Gets the JSONL files.
        folder: Gets the tokenizer and the indexed datasets.
        vocab_size: Entries of the tokenizer.
        workers: Processes that encode; all cores when None.
        recall: Names of recall tasks; the corpora that their facts are read from are fetched too.
        facts: Of each task; see ``add_tasks``.
        progress: Told what is done.

    Raises:
        DataError: A step fails; what is done stays done.
    """
    sources = sources_named(source)
    names = [one.name for one in sources]
    needed = {task.source for task in tasks_named(recall)} - {"", *names}
    fetch([*sources, *(SOURCES[name] for name in sorted(needed))], raw, progress)
    # not on the text of the tasks: they may be added or changed later, and the tokens of the rest shall stay
    make_tokenizer(raw, folder, vocab_size, names, progress)
    build(raw, folder, names, workers, progress=progress)
    if recall:
        add_tasks(recall, raw, folder, facts, workers=workers, progress=progress)
    return read_record(folder)
