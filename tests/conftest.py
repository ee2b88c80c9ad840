"""What every test relies on: one thread, fixed seeds, poisoned memory, and Megatron imported once."""

import os
import random
from collections.abc import Iterator
from importlib import import_module
from types import ModuleType
from typing import Any

# Before numpy and torch start their thread pools: a fork loses threads, and the ranks of a test share few cores
for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_variable] = "1"

import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

from ultramem_megatron.testing.budget import budget  # noqa: E402

from .left_out import lines_of  # noqa: E402

# a loaded machine is no fault of the code; a test may name a budget of its own
settings.register_profile("untimed", deadline=None, max_examples=budget(100, 2000))
settings.load_profile("untimed")
SEED = 1234

TRAINING_MODULES = (
    "megatron.core.datasets.gpt_dataset",
    "megatron.core.dist_checkpointing",
    "megatron.core.distributed",
    "megatron.core.models.gpt.gpt_layer_specs",
    "megatron.core.models.gpt.gpt_model",
    "megatron.core.optimizer",
    "megatron.core.parallel_state",
    "megatron.core.pipeline_parallel",
    "megatron.core.tensor_parallel",
    "ultramem_megatron.training.pretrain",
)


def pytest_collection() -> None:
    """One thread, before any test module is imported. The process that only hands out tests does without torch."""
    import torch

    torch.set_num_threads(1)
    if not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"  # triton reads it when a kernel is decorated


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Of pytest-xdist: the longest files first."""
    from .order import LongestFilesFirst  # where there are no workers pytest-xdist may be missing

    return LongestFilesFirst(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked ``gpu`` where no CUDA device is usable."""
    import torch

    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device, and torch.cuda.is_available() is False here")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What was left out, and how to get it."""
    skipped = [(report.nodeid, str(report.longrepr[2])) for report in terminalreporter.stats.get("skipped", [])]
    for line in lines_of(skipped):
        terminalreporter.write_line(line)


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    """The same random numbers in a test, whatever ran before it. Forked ranks inherit the state."""
    import numpy as np
    import torch

    random.seed(SEED)
    np.random.seed(SEED)
    torch.manual_seed(SEED)


@pytest.fixture(autouse=True)
def poisoned_memory(request: pytest.FixtureRequest) -> Iterator[None]:
    """``torch.empty`` holds NaN (integers: their largest value), so that output which nobody wrote is noticed.

    torch couples this to deterministic algorithms, which would take other kernels on a GPU: CPU tests only.
    """
    import torch

    if request.node.get_closest_marker("gpu"):
        yield
        return
    torch.set_deterministic_debug_mode("warn")  # use_deterministic_algorithms imports the compiler, seconds
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.set_deterministic_debug_mode("default")


@pytest.fixture(scope="session")
def megatron() -> ModuleType:
    """``megatron.core`` and what trains with it, imported once for all tests and their forked ranks, with the CPU seam
    where it is needed."""
    import torch

    if not torch.cuda.is_available():
        import_module("ultramem_megatron.parallel.cpu_seam").install()
    import_module("ultramem_megatron.parallel.mcore_repairs").install()
    for name in TRAINING_MODULES:
        import_module(name)
    # each forked rank would parse it anew
    import_module("ultramem_megatron.planning.profile_file").built_in_profile("cpu-loopback")
    return import_module("megatron.core")
