"""Which optional accelerators are here, and what megatron-core will therefore use. The one place that looks.

megatron-core decides at import, by trying: Transformer Engine's Adam, then apex's, then torch's. What is found here is
found by the same attempts, by feature and not by name, because the package called ``apex`` on PyPI is not NVIDIA's.
Importing this file imports no torch.
"""

import importlib
import importlib.util
from dataclasses import dataclass
from enum import StrEnum
from importlib import metadata
from importlib.machinery import ModuleSpec
from pathlib import Path

from ultramem_megatron.errors import ConfigError

NVIDIA_APEX = "https://github.com/NVIDIA/apex"


class Adam(StrEnum):
    """The Adam that megatron-core takes, by the name under which it imports it."""

    TRANSFORMER_ENGINE = "transformer_engine.pytorch.optimizers.FusedAdam"
    APEX = "apex.optimizers.FusedAdam"
    TORCH = "torch.optim.AdamW"


@dataclass(frozen=True, kw_only=True, slots=True)
class Accelerator:
    """One optional library."""

    usable: bool
    version: str = ""
    """Empty when nothing of that name is installed, or it does not tell."""
    reason: str = ""
    """Why it is not usable."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Accelerators:
    """What was found. ``cuda`` stands for a device that torch can use, not for a toolkit."""

    cuda: Accelerator
    triton: Accelerator
    transformer_engine: Accelerator
    apex: Accelerator
    mpi4py: Accelerator

    @property
    def adam(self) -> Adam:
        """The Adam that megatron-core takes."""
        if self.transformer_engine.usable:
            return Adam.TRANSFORMER_ENGINE
        return Adam.APEX if self.apex.usable else Adam.TORCH

    @property
    def backend(self) -> str:
        """The backend of torch.distributed."""
        return "nccl" if self.cuda.usable else "gloo"


def find_accelerators() -> Accelerators:
    """Look for all of them, importing torch and what of the others is installed (seconds).

    Raises:
        ConfigError: The ``apex`` found is not NVIDIA's, or it cannot run its optimizer.
    """
    refuse_wrong_apex()
    return Accelerators(
        cuda=_find_cuda(),
        triton=_find("triton", ("triton", "")),
        transformer_engine=_find("transformer-engine", ("transformer_engine.pytorch.optimizers", "FusedAdam")),
        apex=_find_apex(),
        mpi4py=_find("mpi4py", ("mpi4py", "")),
    )


def refuse_wrong_apex() -> None:
    """Stop when ``import apex`` would give something that is not NVIDIA's. Nothing of it is imported.

    To be called before megatron-core is imported: it takes ``import apex`` for proof of NVIDIA's layer norm, and a
    model built with it fails far from the cause.

    Raises:
        ConfigError: Names what was found and where, and the remedy.
    """
    spec = importlib.util.find_spec("apex")
    if spec is None or _has_submodule(spec, "optimizers"):
        return
    places = [spec.origin] if spec.origin else list(spec.submodule_search_locations or [])
    version = _version("apex")
    if version:
        what, remedy = f"apex {version}", "`pip uninstall apex`"
    else:
        what, remedy = "a folder or file named apex", "rename it, or take its parent off PYTHONPATH and start elsewhere"
    raise ConfigError(
        f"{what} at {', '.join(places)} is not NVIDIA's apex: it has no apex.optimizers. The apex on PyPI is a web"
        f" toolkit of 2013, and megatron-core would take it for NVIDIA's fused layers and fail. Remedy: {remedy}; no"
        f" apex is needed, and NVIDIA's is built from {NVIDIA_APEX}"
    )


def _has_submodule(spec: ModuleSpec, name: str) -> bool:
    folders = [Path(place) for place in spec.submodule_search_locations or []]
    return any((folder / name).is_dir() or (folder / f"{name}.py").is_file() for folder in folders)


def _find_apex() -> Accelerator:
    """NVIDIA's apex with its CUDA extensions.

    Raises:
        ConfigError: apex.optimizers can be imported, so megatron-core takes it, but FusedAdam has no kernel to call.
    """
    apex = _find("apex", ("apex.optimizers", "FusedAdam"))
    kernel = _find("apex", ("amp_C", "multi_tensor_adam"))
    if apex.usable and not kernel.usable:
        raise ConfigError(
            f"apex {apex.version} is installed without its CUDA extensions (amp_C.multi_tensor_adam: {kernel.reason}),"
            " yet megatron-core takes its FusedAdam, which needs them. Remedy: `pip uninstall apex`, or build it with"
            f" APEX_CPP_EXT=1 APEX_CUDA_EXT=1 from {NVIDIA_APEX}"
        )
    return apex


def _find_cuda() -> Accelerator:
    torch = importlib.import_module("torch")
    if torch.cuda.is_available():
        return Accelerator(usable=True, version=torch.version.cuda or torch.version.hip or "")
    built_for = torch.version.cuda or torch.version.hip
    reason = "torch sees no device" if built_for else f"torch {torch.__version__} is built without CUDA"
    return Accelerator(usable=False, version=built_for or "", reason=reason)


def _find(distribution: str, feature: tuple[str, str]) -> Accelerator:
    """Try one feature.

    Args:
        distribution: Name under which pip knows it.
        feature: Module, and an attribute of it or "".
    """
    module, attribute = feature
    if importlib.util.find_spec(module.partition(".")[0]) is None:
        return Accelerator(usable=False, reason="not installed")
    version = _version(distribution)
    try:
        found = importlib.import_module(module)
    except Exception as error:  # a library built for another torch or driver fails in ways of its own
        return Accelerator(usable=False, version=version, reason=f"{type(error).__name__}: {error}")
    if attribute and not hasattr(found, attribute):
        return Accelerator(usable=False, version=version, reason=f"{module} has no {attribute}")
    return Accelerator(usable=True, version=version)


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""
