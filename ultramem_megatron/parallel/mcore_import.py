"""Importing this module imports megatron-core, in half the time. Come here before anything of megatron-core is named.

megatron-core hands some forty functions to ``torch.compile`` as it is imported. The first of them brings in
Inductor, two to three seconds of a core for every rank, and most runs never call one of these functions. Here each is
compiled when it is first called; without a GPU it stays as it is, and needs no C++ compiler.
"""

import functools
import importlib
from collections.abc import Callable
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


def _import_megatron() -> None:
    undo = put(torch, "compile", compiled_at_first_call)
    try:
        importlib.import_module("megatron.core")  # its jit.py keeps what stands in torch for modules imported later
    finally:
        undo()


_import_megatron()
