"""The recall tasks by name. Imports nothing heavy."""

import difflib
from collections.abc import Sequence

from ultramem_megatron.data.recall.gloss import GLOSS
from ultramem_megatron.data.recall.phonebook import PHONEBOOK
from ultramem_megatron.data.recall.task import RecallTask
from ultramem_megatron.data.recall.world import WORLD
from ultramem_megatron.errors import DataError

TASKS: dict[str, RecallTask] = {task.name: task for task in (PHONEBOOK, WORLD, GLOSS)}

LOSS = "loss"
EVALUATIONS = (*TASKS, LOSS)
"""What `ultramem eval` knows: the recall tasks, and the validation loss."""


def tasks_named(names: Sequence[str]) -> list[RecallTask]:
    """The tasks of these names, each once, in this order.

    Raises:
        DataError: One is unknown; the nearest is named.
    """
    for name in names:
        check_name(name, list(TASKS))
    return [TASKS[name] for name in dict.fromkeys(names)]


def check_name(name: str, known: Sequence[str]) -> None:
    """Refuse a name that is not among ``known``.

    Raises:
        DataError: With the nearest.
    """
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
        raise DataError(f'"{name}" is no task; there are {", ".join(known)}, and the nearest is "{near[0]}"')
