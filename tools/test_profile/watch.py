"""What counts as which cause, put in as the modules that do it are imported. The standard library alone."""

import functools
import importlib.abc
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from test_profile.causes import Causes

FOLDER = "ULTRAMEM_TEST_PROFILE"
"""Variable of the environment: where every process of a run writes its records."""

IMPORTS = {
    "torch": "import of torch",
    "megatron.core": "import of megatron-core",
    "triton": "import of triton",
    "tensorboard": "import of tensorboard",
    "torch.utils.tensorboard": "import of tensorboard",
    "matplotlib": "import of matplotlib",
    "scipy": "import of scipy",
    "ultramem_megatron": "import of our packages",
    "ultramem_launch": "import of our packages",
    "ultramem_kernels": "import of our packages",
}
"""By the first name that fits; what a module imports inside counts for that."""

CALLS: dict[str, list[tuple[str, str]]] = {
    "triton.runtime.interpreter": [("GridExecutor.__call__", "interpreted kernels")],
    "triton.compiler.compiler": [("compile", "compilation of kernels")],
    "ultramem_megatron.training.step": [("train_step", "training steps")],
    "ultramem_megatron.testing.distributed": [("run_distributed", "waits for forked ranks")],
    "subprocess": [("Popen.wait", "waits for programs"), ("Popen.communicate", "waits for programs")],
    "playwright.sync_api": [("sync_playwright", "browser")],
}
"""By module: ``name`` or ``Class.name``, and its cause."""


def cause_of(module: str) -> str | None:
    """Of an import."""
    for end in range(len(parts := module.split(".")), 0, -1):
        if cause := IMPORTS.get(".".join(parts[:end])):
            return cause
    return None


class Watch(importlib.abc.MetaPathFinder):
    """Counts imports, and wraps what ``CALLS`` names when its module comes in."""

    def __init__(self, causes: Causes) -> None:
        self.causes = causes
        self._inside: set[str] = set()

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """The usual one, with its loader wrapped."""
        cause = cause_of(name)
        if (cause is None and name not in CALLS) or name in self._inside:
            return None
        self._inside.add(name)
        try:
            spec = importlib.util.find_spec(name) if path is None else self._find(name, path)
        finally:
            self._inside.discard(name)
        if spec is not None and spec.loader is not None and hasattr(spec.loader, "exec_module"):
            spec.loader.exec_module = self._executor(spec.loader.exec_module, name, cause)  # type: ignore[method-assign]
        return spec

    def _find(self, name: str, path: Sequence[str] | None) -> ModuleSpec | None:
        for finder in sys.meta_path:
            if finder is not self and (spec := finder.find_spec(name, path, None)) is not None:
                return spec
        return None

    def _executor(self, execute: Callable[[ModuleType], None], name: str, cause: str | None) -> Callable[..., None]:
        def run(module: ModuleType) -> None:
            if cause is None:
                execute(module)
            else:
                with self.causes.within(cause):
                    execute(module)
            self.wrap_calls(module)

        return run

    def wrap_calls(self, module: ModuleType) -> None:
        """Of a module that is imported."""
        for dotted, cause in CALLS.get(module.__name__, []):
            *owners, name = dotted.split(".")
            self.causes.wrap(functools.reduce(getattr, owners, module), name, cause)


def watch_process(kind: str) -> Causes:
    """From now on this process counts, and writes one record when it ends; so do the children that it forks."""
    causes = Causes()
    watch = Watch(causes)
    for name in CALLS:
        if name in sys.modules:
            watch.wrap_calls(sys.modules[name])
    sys.meta_path.insert(0, watch)
    causes.wrap(time, "sleep", "sleeps and polls")
    _write_at_the_end(causes, kind)
    return causes


def _write_at_the_end(causes: Causes, kind: str) -> None:
    began = [time.monotonic(), kind]
    leave: Callable[[int], Any] = os._exit

    def write() -> None:
        with_children = os.times()
        record = {
            "process": began[1],
            "pid": os.getpid(),
            "arguments": sys.argv[:3],
            "seconds": round(time.monotonic() - float(began[0]), 3),
            "processor_seconds": round(with_children.user + with_children.system, 3),
            "causes": causes.take(),
        }
        append(record)

    def forked() -> None:
        causes.restart()
        began[:] = [time.monotonic(), "fork"]

    def leave_counted(status: int) -> None:
        try:
            write()
        finally:
            leave(status)

    os.register_at_fork(after_in_child=forked)
    os._exit = leave_counted
    if kind != "tests":
        import atexit

        atexit.register(write)


def append(record: dict[str, Any]) -> None:
    """To the file of this process."""
    file = Path(os.environ[FOLDER]) / f"{os.getpid()}.jsonl"
    with file.open("a") as stream:
        stream.write(json.dumps(record) + "\n")
