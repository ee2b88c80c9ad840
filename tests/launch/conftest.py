"""Programs are forked from a process that has imported what they need (``testing/programs.py``)."""

from importlib import import_module
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def warm(megatron: ModuleType) -> None:
    """All that ``ultramem`` and its ranks import is here: what is forked starts at once."""
    import_module("ultramem_launch.__main__")
    for verb in ("calibrate", "pretrain"):
        for name in import_module(f"ultramem_launch.{verb}").RANK_IMPORTS:
            import_module(name)
