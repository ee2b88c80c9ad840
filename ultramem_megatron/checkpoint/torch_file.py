"""A tensor as ``torch.save`` writes it, without torch: a zip archive whose entries are stored as they are."""

import io
import math
import zipfile
from collections import OrderedDict
from typing import BinaryIO

import numpy as np

from ultramem_megatron.checkpoint.digest import Bits
from ultramem_megatron.checkpoint.stored import STORAGE_CLASSES
from ultramem_megatron.checkpoint.torch_pickle import Pickler, Storage, stand_in

_PROTOCOL = 2  # torch.save's
_ROOT = "archive"


def write_tensor(stream: BinaryIO, bits: Bits, dtype: str) -> None:
    """Append a tensor to a stream; ``torch.load`` reads it from where it begins.

    Args:
        stream: Positioned at its end.
        bits: The elements, in row-major order without gaps.
        dtype: As torch calls it, without ``torch.``.
    """
    with zipfile.ZipFile(_FromHere(stream), "w", zipfile.ZIP_STORED) as archive:  # type: ignore[call-overload]
        _put(archive, "data.pkl", _description(bits.shape, dtype))
        _put(archive, "byteorder", b"little")
        _put(archive, "data/0", bits.reshape(-1).view(np.uint8).data)
        _put(archive, "version", b"3\n")


def _put(archive: zipfile.ZipFile, name: str, content: bytes | memoryview) -> None:
    entry = zipfile.ZipInfo(f"{_ROOT}/{name}")  # of 1980: the same content gives the same file
    entry.file_size = len(content)
    with archive.open(entry, "w") as file:
        file.write(content)


def _description(shape: tuple[int, ...], dtype: str) -> bytes:
    """What to rebuild the tensor from."""
    strides = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    storage = Storage(("storage", stand_in("torch", STORAGE_CLASSES[dtype]), "0", "cpu", math.prod(shape)))
    tensor = stand_in("torch._utils", "_rebuild_tensor_v2")(storage, 0, shape, strides, False, OrderedDict())
    buffer = io.BytesIO()
    Pickler(buffer, protocol=_PROTOCOL).dump(tensor)
    return buffer.getvalue()


class _FromHere:
    """The rest of a stream as a file of its own: places in an archive count from where it begins."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._start = stream, stream.tell()

    def write(self, content: bytes | memoryview) -> int:
        return self._stream.write(content)

    def flush(self) -> None:
        self._stream.flush()

    def tell(self) -> int:
        return self._stream.tell() - self._start

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._stream.seek(offset + self._start * (whence == io.SEEK_SET), whence) - self._start

    def seekable(self) -> bool:
        return True
