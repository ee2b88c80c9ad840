"""Faults for ranks of a job, put in from outside: Python imports a module of this name at its start.

FAULT_PACE_SECONDS    the first start of a job takes so much longer for every step
FAULT_CRASH_AT_STEP   every start raises in this step
FAULT_NAN_AT_STEP     one gradient of rank 1 is NaN in this step, once in a process; ``15-``: in every step from it on
FAULT_NOTE            file that gets the time of the first NaN
"""

import importlib.abc
import importlib.util
import os
import sys
import time
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

TARGET = "ultramem_megatron.training.loop"
NAN_RANK = 1


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
    pace = float(os.environ.get("FAULT_PACE_SECONDS", "0")) if "SLURM_RESTART_COUNT" not in os.environ else 0.0
    crash = int(os.environ.get("FAULT_CRASH_AT_STEP", "0"))
    poison = poisoner(os.environ.get("FAULT_NAN_AT_STEP", ""))

    def train_step(state: Any, batch: Any) -> Any:
        time.sleep(pace)
        if state.step + 1 == crash:
            raise RuntimeError(f"crash in step {crash}, as the test asks")
        clean = poison(state)
        try:
            return step(state, batch)
        finally:
            clean()

    module.train_step = train_step


def rank() -> int:
    import torch.distributed as dist  # not at the start of every Python

    return dist.get_rank()


def poisoner(when: str) -> Callable[[Any], Callable[[], None]]:
    """What is called before a step, and gives what is to be called after it."""
    first, always = int(when.removesuffix("-") or 0), when.endswith("-")
    done: list[int] = []

    def poison(state: Any) -> Callable[[], None]:
        step = state.step + 1
        is_due = step >= first if always else step == first and not done
        if not first or not is_due or rank() != NAN_RANK:
            return lambda: None
        done.append(step)
        if len(done) == 1 and "FAULT_NOTE" in os.environ:
            Path(os.environ["FAULT_NOTE"]).write_text(str(time.time()))
        parameter = next(one for one in state.chunks[0].parameters() if one.requires_grad)
        return parameter.register_hook(lambda gradient: gradient * float("nan")).remove

    return poison


if any(name.startswith("FAULT_") for name in os.environ):
    sys.meta_path.insert(0, WrapSteps())
