"""Room kept in a run folder, so that why a job ended can be written there even when its disk or quota is full."""

import os
from pathlib import Path

from ultramem_megatron.checkpoint.disk import names_full_disk
from ultramem_megatron.files import written_whole

RESERVE_BYTES = 256 << 10
"""For the last words of a job: status file, list of starts, a line of the log."""
PROBE = ".probe"


def keep_reserve(file: Path) -> None:
    """Take the room, if it is not taken yet.

    Raises:
        FileError: There is none.
    """
    if file.is_file() and file.stat().st_size == RESERVE_BYTES:
        return
    with written_whole(file) as stream:
        stream.write(os.urandom(RESERVE_BYTES))  # no zeros: a file system may store none


def is_full(folder: Path) -> bool:
    """Whether nothing can be written there any more. Tried, for a quota is not seen otherwise."""
    probe = folder / PROBE
    try:
        with written_whole(probe, lasting=False) as stream:
            stream.write(os.urandom(RESERVE_BYTES))
        probe.unlink()
    except OSError as error:
        return names_full_disk(str(error))
    return False
