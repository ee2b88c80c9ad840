"""What stands in place of ``torch.compile`` while megatron-core is imported.

Each function is compiled when it is first called; without a GPU it stays as it is, and needs no C++ compiler. Why, and
who sees to it: `mcore_finder.py`.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ultramem_megatron.parallel.patching import put


def compiled_at_first_call(function: Callable[..., Any]) -> Callable[..., Any]:
    """In place of ``torch.compile(function)``."""

    @functools.cache
    def target() -> Callable[..., Any]:
        return torch.compile(function) if torch.cuda.is_available() else function

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():  # it is part of something that is compiled as a whole
            return function(*args, **kwargs)
        return target()(*args, **kwargs)

    return call


@contextmanager
def compiling_at_first_call() -> Iterator[None]:
    """While ``megatron.core`` is executed: its jit.py keeps what stands in torch for modules imported later."""
    undo = put(torch, "compile", compiled_at_first_call)
    try:
        yield
    finally:
        undo()
