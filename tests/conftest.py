"""What every test relies on: one thread, fixed seeds, poisoned memory, and Megatron imported once."""

import os
import random
from collections.abc import Iterator
from importlib import import_module
from types import ModuleType

# Before numpy and torch start their thread pools: a fork loses threads, and the ranks of a test share few cores
for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_variable] = "1"

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import settings  # noqa: E402

settings.register_profile("untimed", deadline=None)  # a loaded machine is no fault of the code
settings.load_profile("untimed")
torch.set_num_threads(1)

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # triton reads it when a kernel is decorated: before any kernel is imported

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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Jobs on Slurm first; skip tests marked ``gpu`` where no CUDA device is usable."""
    # they mostly wait, so other workers have the machine meanwhile; and the first tests all go to one worker of
    # pytest-xdist, so that there is one cluster
    items.sort(key=lambda item: "slurm" not in item.path.parent.name)
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device, and torch.cuda.is_available() is False here")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    """The same random numbers in a test, whatever ran before it. Forked ranks inherit the state."""
    random.seed(SEED)
    np.random.seed(SEED)
    torch.manual_seed(SEED)


@pytest.fixture(autouse=True)
def poisoned_memory(request: pytest.FixtureRequest) -> Iterator[None]:
    """``torch.empty`` holds NaN (integers: their largest value), so that output which nobody wrote is noticed.

    torch couples this to deterministic algorithms, which would take other kernels on a GPU: CPU tests only.
    """
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
    if not torch.cuda.is_available():
        import_module("ultramem_megatron.parallel.cpu_seam").install()
    import_module("ultramem_megatron.parallel.mcore_repairs").install()
    for name in TRAINING_MODULES:
        import_module(name)
    return import_module("megatron.core")
