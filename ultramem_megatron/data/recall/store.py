"""Recall tasks in a data folder: a source like any other, and its questions in ``tasks/<task>.jsonl``."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from ultramem_megatron.data.build import build
from ultramem_megatron.data.progress import Progress, silent
from ultramem_megatron.data.recall.registry import TASKS, tasks_named
from ultramem_megatron.data.recall.task import Question, RecallTask, documents, questions
from ultramem_megatron.data.record import read_record
from ultramem_megatron.errors import DataError
from ultramem_megatron.files import sha256_of, write_json, write_text

TASKS_FOLDER = "tasks"
DEFAULT_FACTS = 1000
FORMAT = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskRecord:
    """``tasks/<task>.json``: what the questions of a folder were made from."""

    task: str
    facts: int
    seed: int
    questions: int
    text_sha256: str
    """Of the JSONL that states the facts."""
    questions_sha256: str


def add_tasks(
    names: Sequence[str],
    raw: Path,
    folder: Path,
    facts: int | None = None,
    seed: int | None = None,
    workers: int | None = None,
    progress: Progress = silent,
) -> list[TaskRecord]:
    """Write ``raw/<task>.jsonl`` and the questions, and encode the text with the tokenizer of ``folder``.

    Everything follows from the corpus, ``facts`` and ``seed``. What is up to date is left alone, what was made
    with other numbers is made again.

    Args:
        names: Of tasks.
        raw: Holds the corpora that the facts are read from; gets the text of the tasks.
        folder: The data folder, with a tokenizer.
        facts: How many, or as many as the corpus has; None for as many as the folder has, else ``DEFAULT_FACTS``.
        seed: Of facts and choices; None for that of the folder, else 0.
        workers: Processes that encode; all cores when None.
        progress: Told what is done.

    Raises:
        DataError: A task is unknown, or its corpus or the tokenizer is missing.
    """
    tasks = tasks_named(names)
    made = []
    for task in tasks:
        what = f"facts of {task.name}"
        progress(what, 0.0)
        known = read_task_records(folder).get(task.name)
        wanted_facts = facts if facts is not None else known.facts if known else DEFAULT_FACTS
        wanted_seed = seed if seed is not None else known.seed if known else 0
        made.append(_write_task(task, raw, folder, wanted_facts, wanted_seed))
        progress(what, 1.0)
    build(raw, folder, [task.name for task in tasks], workers, progress=progress)
    return made


def _write_task(task: RecallTask, raw: Path, folder: Path, count: int, seed: int) -> TaskRecord:
    draw = Random(f"{task.name} {seed}")
    facts = task.find(raw, count, draw)
    text = _lines({"id": key, "text": text} for key, text in documents(task, facts))
    asked = questions(task, facts, draw)
    asked_text = _lines(dataclasses.asdict(question) for question in asked)
    record = TaskRecord(
        task=task.name,
        facts=len(facts),
        seed=seed,
        questions=len(asked),
        text_sha256=_write_if_new(raw / f"{task.name}.jsonl", text),
        questions_sha256=_write_if_new(_questions_file(folder, task.name), asked_text),
    )
    if read_task_records(folder).get(task.name) != record:
        write_json(_record_file(folder, task.name), {"format": FORMAT, **dataclasses.asdict(record)})
    return record


def read_task_records(folder: Path) -> dict[str, TaskRecord]:
    """The tasks of a data folder by name.

    Raises:
        DataError: A record is damaged.
    """
    return {name: _read_record(path) for name in TASKS if (path := _record_file(folder, name)).is_file()}


def open_questions(folder: Path, name: str) -> tuple[TaskRecord, list[Question]]:
    """A task of a data folder, in the order in which it is asked.

    Raises:
        DataError: The folder has no such task, its files are damaged, or they do not belong to its text.
    """
    remedy = f"make it with `ultramem data recall --task {name} --out {folder}`"
    record = read_task_records(folder).get(name)
    path = _questions_file(folder, name)
    if record is None or not path.is_file():
        raise DataError(f"data folder {folder} has no task {name} ({path}); {remedy}, and train on it")
    if sha256_of(path) != record.questions_sha256:
        raise DataError(f"{path} is not the file that {_record_file(folder, name).name} speaks of; {remedy}")
    source = read_record(folder).sources.get(name)
    if source is None or source.text_sha256 != record.text_sha256:
        raise DataError(f"{path} asks for other facts than the text of {folder / name} states; {remedy}")
    with path.open(encoding="utf-8") as stream:
        fields = [json.loads(line) for line in stream]
    return record, [Question(**{**entry, "choices": tuple(entry["choices"])}) for entry in fields]


def _read_record(path: Path) -> TaskRecord:
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        return TaskRecord(**{field.name: entries[field.name] for field in dataclasses.fields(TaskRecord)})
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is damaged ({type(error).__name__}: {error}); delete it and run `ultramem data recall` again"
        ) from None


def _questions_file(folder: Path, name: str) -> Path:
    return folder / TASKS_FOLDER / f"{name}.jsonl"


def _record_file(folder: Path, name: str) -> Path:
    return folder / TASKS_FOLDER / f"{name}.json"


def _lines(entries: Iterable[dict[str, object]]) -> str:
    return "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)


def _write_if_new(path: Path, text: str) -> str:
    """Write a file unless it holds ``text`` already; its sha256."""
    digest = hashlib.sha256(text.encode()).hexdigest()
    if not path.is_file() or sha256_of(path) != digest:
        write_text(path, text)
    return digest
