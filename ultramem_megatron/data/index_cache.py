"""Sample indices of epochs, kept on disk: building one means shuffling every document of a corpus."""

import logging
import os
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np

from ultramem_megatron.data.mcore import EpochIndex
from ultramem_megatron.errors import DataError

logger = logging.getLogger(__name__)

INDEX_CACHE = "index_cache"
"""Folder of a data folder that holds sample indices; made and used by training."""


class IndexCache:
    """The stored epochs of one split of one source.

    Args:
        folder: Its name must hold a hash of all that an index depends on: files, seed, sequence length. A corpus
            that is rebuilt under its old name then gets another folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load(self, epoch: int, num_samples: int) -> EpochIndex | None:
        """The stored index, memory-mapped, or None.

        Raises:
            DataError: The stored index is damaged.
        """
        folder = self._path(epoch)
        if not folder.is_dir():
            return None
        try:
            index = EpochIndex(
                **{
                    name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
                    for name in EpochIndex.__slots__
                }
            )
            complete = len(index.shuffle_index) == num_samples and index.sample_index.shape == (num_samples + 1, 2)
        except (OSError, ValueError, EOFError):
            complete = False
        if not complete:
            raise DataError(f"{folder} is damaged; delete it, it is made anew at the next start")
        return index

    def store(self, epoch: int, index: EpochIndex) -> None:
        """Write beside and rename. A folder that cannot be written costs time at the next start, no more."""
        final = self._path(epoch)
        part = final.with_name(f".{final.name}.{os.getpid()}.part")
        try:
            part.mkdir(parents=True, exist_ok=True)
            for name, array in asdict(index).items():
                np.save(part / f"{name}.npy", array, allow_pickle=False)
            part.rename(final)
        except OSError as error:
            if not final.is_dir():  # else another process was first
                logger.warning("cannot store the sample index %s (%s); it is built at every start", final, error)
            shutil.rmtree(part, ignore_errors=True)

    def _path(self, epoch: int) -> Path:
        return self._folder / f"epoch-{epoch:05d}"
