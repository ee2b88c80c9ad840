"""The Triton kernels of an operation, imported when the first CUDA tensor comes."""

import importlib
import importlib.util
from typing import Any


def triton_kernels(operation: str, module: str = "triton_kernel") -> Any:
    """The module ``ultramem_kernels.<operation>.<module>``.

    Raises:
        ModuleNotFoundError: Triton is not installed. There is no slower way to take instead: who has a GPU should know.
    """
    if importlib.util.find_spec("triton") is None:
        raise ModuleNotFoundError(
            f"ultramem_kernels.{operation} runs on CUDA tensors by Triton, which is not installed; pip install "
            "'triton>=3.6' (CUDA builds of torch bring it)",
            name="triton",
        )
    return importlib.import_module(f"ultramem_kernels.{operation}.{module}")
