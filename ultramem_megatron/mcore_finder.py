"""megatron-core is imported without Inductor, whichever of our modules names it first.

megatron-core hands some forty functions to ``torch.compile`` as it is imported. The first of them brings in Inductor,
two to three seconds of a core for every process, and most never call one of these functions. So ``torch.compile`` is
another one while ``megatron.core`` is imported (`parallel/mcore_import.py`).

A hook and not a rule that a certain module comes first: more than twenty of our files name megatron-core at their head,
and imports are sorted. Standard library only: planning runs without torch.
"""

import importlib.abc
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

MEGATRON = "megatron.core"


class MegatronFinder(importlib.abc.MetaPathFinder):
    """Finds ``megatron.core`` as the others do, once, and changes how it is executed."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """None for all other modules."""
        if name != MEGATRON:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_without_compiler(module: ModuleType) -> None:
                without = importlib.import_module("ultramem_megatron.parallel.mcore_import")
                with without.compiling_at_first_call():
                    execute(module)

            spec.loader.exec_module = execute_without_compiler  # type: ignore[method-assign]
        return spec


def install() -> None:
    """Once; nothing where megatron-core is there already."""
    if MEGATRON not in sys.modules and not any(isinstance(finder, MegatronFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, MegatronFinder())
