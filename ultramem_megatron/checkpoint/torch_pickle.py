"""torch's pickles without torch: what a checkpoint's files say is read and written by the names of things alone.

Importing torch takes 220 MB and seconds; megatron-core as much again. Reading, checking and rewriting a checkpoint
needs neither. An object of a torch class is here a ``Stand``: the class's name, and what the pickle says of the object.
Only names on a given list are read, so that nothing in a file runs code.
"""

import copyreg
import pickle
from collections.abc import Callable, Mapping
from functools import cache
from typing import IO, Any

DCP = "torch.distributed.checkpoint.metadata"


class Stand:
    """An object of a class that is not imported."""

    module: str

    def __new__(cls, *arguments: Any) -> "Stand":
        """As pickles make objects: the state follows."""
        stand = super().__new__(cls)
        stand.arguments, stand.was_called, stand.state = arguments, False, None
        return stand

    def __init__(self, *arguments: Any) -> None:
        """Only where the pickle calls the class (or function) instead."""
        self.arguments: tuple[Any, ...] = arguments
        self.was_called = True
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __getattr__(self, name: str) -> Any:
        if not isinstance(self.state, dict) or name not in self.state:
            raise AttributeError(f"{type(self).__name__} has no {name}")
        return self.state[name]

    def _key(self) -> Any:
        """What torch tells indices of rectangles apart by; other objects are equal to themselves alone."""
        return place_of(self) if type(self).__name__ == "MetadataIndex" else id(self)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stand) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())


@cache
def stand_in(module: str, name: str) -> type[Stand]:
    """The class of stands for ``module.name``."""
    return type(name, (Stand,), {"module": module})


def with_state(module: str, name: str, state: Any) -> Stand:
    """An object made here instead of read."""
    stand = Stand.__new__(stand_in(module, name))
    stand.state = state
    return stand


def torch_size(sizes: tuple[int, ...]) -> Stand:
    """As ``torch.Size``."""
    return stand_in("torch", "Size")(sizes)


def sizes_of(size: Any) -> tuple[int, ...]:
    """Back."""
    return tuple(size.arguments[0]) if isinstance(size, Stand) else tuple(size)


def place_of(index: Stand) -> tuple[str, tuple[int, ...] | None]:
    """What a ``MetadataIndex`` says: the name of a tensor or object, and where in the tensor a rectangle begins."""
    offset = index.state.get("offset")
    return index.fqn, None if offset is None else sizes_of(offset)


class Unpickler(pickle.Unpickler):
    """Reads stands for the names that it knows, and nothing else."""

    def __init__(
        self, stream: IO[bytes], knows: Callable[[str, str], bool], what: str, own: Mapping[tuple[str, str], Any]
    ) -> None:
        """
        Args:
            stream: The pickle.
            knows: Whether it may name ``module`` and ``name``.
            what: It is, for the message.
            own: Names for which there is something better than a stand.
        """
        super().__init__(stream)
        self._knows, self._what, self._own = knows, what, own

    def find_class(self, module: str, name: str) -> Any:
        """Of the names of the pickle, one."""
        if (module, name) in self._own:
            return self._own[module, name]
        if not self._knows(module, name):
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no {self._what} needs")
        return stand_in(module, name)

    def persistent_load(self, pid: Any) -> Any:
        """torch names storages so."""
        return pid


class Pickler(pickle._Pickler):
    """Writes stands as what they stand for. In Python, because the one in C imports what it names."""

    # what typeshed leaves out of it
    write: Callable[[bytes], object]
    memoize: Callable[[Any], None]

    def reducer_override(self, item: Any) -> Any:
        """How a stand was made is how it is made again."""
        if not isinstance(item, Stand):
            return NotImplemented
        made = type(item), item.arguments
        if not item.was_called:
            made = copyreg.__newobj__, (type(item), *item.arguments)  # type: ignore[attr-defined]
        return made if item.state is None else (*made, item.state)

    def save_global(self, item: Any, name: str | None = None) -> None:
        """A name, without a look whether it is there."""
        if isinstance(item, type) and issubclass(item, Stand):
            self.write(pickle.GLOBAL + f"{item.module}\n{item.__name__}\n".encode())
            self.memoize(item)
        else:
            super().save_global(item, name)  # type: ignore[misc]

    def persistent_id(self, item: Any) -> Any:
        """A storage is a tuple that says which."""
        return tuple(item) if isinstance(item, Storage) else None


class Storage(tuple[Any, ...]):
    """What ``torch.save`` calls the numbers of a tensor: ("storage", class, key, device, elements)."""
