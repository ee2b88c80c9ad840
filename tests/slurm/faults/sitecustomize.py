"""Faults for ranks of a job, put in from outside: Python imports a module of this name at its start.

TEST_PACE_SECONDS     the first start of a job takes so much longer for every step
TEST_CRASH_AT_STEP    every start raises in this step
"""

import importlib.abc
import importlib.util
import os
import sys
import time
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

TARGET = "ultramem_megatron.training.loop"


class WrapSteps(importlib.abc.MetaPathFinder):
    """Replaces ``train_step`` in the loop as soon as that is imported."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != TARGET:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.loader is not None
        execute = spec.loader.exec_module

        def execute_and_wrap(module: ModuleType) -> None:
            execute(module)
            wrap(module)

        spec.loader.exec_module = execute_and_wrap  # type: ignore[method-assign]
        return spec


def wrap(module: Any) -> None:
    step = module.train_step
    pace = float(os.environ.get("TEST_PACE_SECONDS", "0")) if "SLURM_RESTART_COUNT" not in os.environ else 0.0
    crash = int(os.environ.get("TEST_CRASH_AT_STEP", "0"))

    def train_step(state: Any, batch: Any) -> Any:
        time.sleep(pace)
        if state.step + 1 == crash:
            raise RuntimeError(f"crash in step {crash}, as the test asks")
        return step(state, batch)

    module.train_step = train_step


if {"TEST_PACE_SECONDS", "TEST_CRASH_AT_STEP"} & set(os.environ):
    sys.meta_path.insert(0, WrapSteps())
