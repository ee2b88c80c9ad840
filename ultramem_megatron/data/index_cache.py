"""Sample indices of epochs, kept on disk: building one means shuffling every document of a corpus.

Epoch 0 is always kept: the ranks of a start meet there, and one builds it for all. Of later epochs the newest two are,
and only of a large source: a small one would leave a folder every few steps, and is built in a fraction of a second.
"""

import json
import logging
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np

from ultramem_megatron.data.mcore import EpochIndex
from ultramem_megatron.errors import DataError
from ultramem_megatron.files import remove_leftovers, sha256_of, temporary_folder

logger = logging.getLogger(__name__)

_HASHES = "sha256.json"
_LARGE = 2**20
"""Documents and samples of an epoch."""
_LATER_EPOCHS = 2


class IndexCache:
    """The stored epochs of one split of one source.

    Args:
        folder: Its name must hold a hash of all that an index depends on: lengths of documents, seed, sequence length.
            A corpus that is rebuilt under its old name then gets another folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load(self, epoch: int, num_samples: int) -> EpochIndex | None:
        """The stored index, memory-mapped, or None.

        Raises:
            DataError: The stored index is damaged.
        """
        folder = self._path(epoch)
        try:
            hashes = json.loads((folder / _HASHES).read_bytes())
            whole = all(sha256_of(_array_file(folder, name)) == hashes[name] for name in EpochIndex.__slots__)
            index = EpochIndex(**{name: _open_array(folder, name) for name in EpochIndex.__slots__})
            complete = len(index.shuffle_index) == num_samples and index.sample_index.shape == (num_samples + 1, 2)
        except OSError:  # not there; or not all of it, as when another process makes room
            return None
        except (ValueError, EOFError, KeyError, TypeError):
            whole = complete = False
        if not (whole and complete):
            raise DataError(f"{folder} is damaged; delete it, it is made anew at the next start")
        return index

    def store(self, epoch: int, index: EpochIndex) -> None:
        """Keep it, if it is worth that. A folder that cannot be written costs time at the next start, no more."""
        if epoch and len(index.document_index) + len(index.shuffle_index) < _LARGE:
            return
        final = self._path(epoch)
        try:
            remove_leftovers(self._folder)
            with temporary_folder(self._folder, final.name) as room:
                _write(room / "index", index)
                shutil.rmtree(final, ignore_errors=True)  # incomplete, or of an earlier version: it was not loaded
                (room / "index").rename(final)
            self._make_room(epoch)
        except OSError as error:
            if not final.is_dir():  # else another process was first
                logger.warning("cannot store the sample index %s (%s); it is built at every start", final, error)

    def _make_room(self, epoch: int) -> None:
        for path in self._folder.glob("epoch-*"):
            if 0 < int(path.name.partition("-")[2]) <= epoch - _LATER_EPOCHS:
                shutil.rmtree(path, ignore_errors=True)

    def _path(self, epoch: int) -> Path:
        return self._folder / f"epoch-{epoch:05d}"


def _write(folder: Path, index: EpochIndex) -> None:
    folder.mkdir()
    for name, array in asdict(index).items():
        np.save(_array_file(folder, name), array, allow_pickle=False)
    hashes = {name: sha256_of(_array_file(folder, name)) for name in EpochIndex.__slots__}
    (folder / _HASHES).write_text(json.dumps(hashes, indent=2) + "\n")


def _open_array(folder: Path, name: str) -> np.ndarray:
    return np.load(_array_file(folder, name), mmap_mode="r", allow_pickle=False)


def _array_file(folder: Path, name: str) -> Path:
    return folder / f"{name}.npy"
