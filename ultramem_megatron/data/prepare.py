"""``ultramem data prepare``: fetch, tokenizer and build in one call."""

from pathlib import Path

from ultramem_megatron.data.build import build
from ultramem_megatron.data.fetch import fetch
from ultramem_megatron.data.progress import Progress, silent
from ultramem_megatron.data.record import FolderRecord
from ultramem_megatron.data.sources import sources_named
from ultramem_megatron.data.tokenizer import make_tokenizer


def prepare(
    source: str,
    raw: Path,
    folder: Path,
    vocab_size: int = 8192,
    workers: int | None = None,
    progress: Progress = silent,
) -> FolderRecord:
    """Make a data folder that training can read; steps that are done are skipped.

    Args:
        source: A set (``quickstart``, ``core``) or one source.
        raw: Gets the JSONL files.
        folder: Gets the tokenizer and the indexed datasets.
        vocab_size: Entries of the tokenizer.
        workers: Processes that encode; all cores when None.
        progress: Told what is done.

    Raises:
        DataError: A step fails; what is done stays done.
    """
    sources = sources_named(source)
    names = [one.name for one in sources]
    fetch(sources, raw, progress)
    make_tokenizer(raw, folder, vocab_size, names, progress)
    return build(raw, folder, names, workers, progress=progress)
