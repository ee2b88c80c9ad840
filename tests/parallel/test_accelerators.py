"""Accelerators are found by feature: another apex is refused unseen, and the Adam named is the one Megatron takes."""

import importlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from ultramem_megatron.errors import ConfigError
from ultramem_megatron.parallel.accelerators import Adam, find_accelerators, refuse_wrong_apex

ROOT = Path(__file__).parents[2]
FAKED = ("apex", "amp_C", "transformer_engine")
EXPLODES = "raise RuntimeError('it must not be imported')"

Install = Callable[[dict[str, str]], Path]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Writes files into a folder in front of sys.path, and forgets their modules afterwards."""

    def write(files: dict[str, str]) -> Path:
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        monkeypatch.syspath_prepend(tmp_path)
        return tmp_path

    yield write
    for name in [name for name in sys.modules if name.partition(".")[0] in FAKED]:
        del sys.modules[name]


def test_no_apex_is_fine() -> None:
    refuse_wrong_apex()  # raises nothing
    assert not find_accelerators().apex.usable


@pytest.mark.parametrize("form", ["apex/__init__.py", "apex.py"])
def test_a_module_of_that_name_is_refused_without_importing_it(install: Install, form: str) -> None:
    folder = install({form: EXPLODES})
    with pytest.raises(ConfigError) as refusal:
        refuse_wrong_apex()
    assert f"a folder or file named apex at {folder / form} is not NVIDIA's apex" in str(refusal.value)
    assert "Remedy: rename it, or take its parent off PYTHONPATH" in str(refusal.value)


def test_the_apex_of_pypi_is_named_by_its_version(install: Install) -> None:
    metadata = "Metadata-Version: 1.1\nName: apex\nVersion: 0.9.10.dev0\n"
    folder = install({"apex/__init__.py": EXPLODES, "apex-0.9.10.dev0.dist-info/METADATA": metadata})
    with pytest.raises(ConfigError) as refusal:
        refuse_wrong_apex()
    assert f"apex 0.9.10.dev0 at {folder}/apex/__init__.py is not NVIDIA's" in str(refusal.value)
    assert "Remedy: `pip uninstall apex`" in str(refusal.value)


def test_a_folder_without_python_is_refused_too(install: Install) -> None:
    """A clone of the repository beside the script: `import apex` gives an empty namespace package."""
    folder = install({"apex/README.md": "", "apex/apex/optimizers/__init__.py": EXPLODES})
    with pytest.raises(ConfigError, match=str(folder / "apex")):
        find_accelerators()


def test_nvidia_apex_is_taken(install: Install) -> None:
    install(
        {
            "apex/__init__.py": "",
            "apex/optimizers/__init__.py": "class FusedAdam: ...",
            "amp_C.py": "multi_tensor_adam = len",
        }
    )
    found = find_accelerators()
    assert found.apex.usable
    assert found.adam is Adam.APEX


@pytest.mark.parametrize("extension", [{}, {"amp_C.py": ""}, {"amp_C.py": "raise ImportError('undefined symbol')"}])
def test_nvidia_apex_without_its_kernels_is_refused(install: Install, extension: dict[str, str]) -> None:
    install({"apex/__init__.py": "", "apex/optimizers/__init__.py": "class FusedAdam: ...", **extension})
    with pytest.raises(ConfigError, match=r"without its CUDA extensions .* APEX_CUDA_EXT=1"):
        find_accelerators()


def test_transformer_engine_comes_before_apex(install: Install) -> None:
    install(
        {
            "apex/__init__.py": "",
            "apex/optimizers/__init__.py": "class FusedAdam: ...",
            "amp_C.py": "multi_tensor_adam = len",
            "transformer_engine/__init__.py": "",
            "transformer_engine/pytorch/optimizers.py": "class FusedAdam: ...",
        }
    )
    assert find_accelerators().adam is Adam.TRANSFORMER_ENGINE


def test_a_broken_transformer_engine_says_why(install: Install) -> None:
    install({"transformer_engine/__init__.py": "raise OSError('libcudnn.so.9: cannot open shared object file')"})
    found = find_accelerators()
    assert not found.transformer_engine.usable
    assert found.transformer_engine.reason == "OSError: libcudnn.so.9: cannot open shared object file"
    assert found.adam is Adam.TORCH


def test_the_adam_named_is_the_one_that_megatron_takes(megatron: ModuleType) -> None:
    module, _, name = find_accelerators().adam.rpartition(".")
    taken = importlib.import_module("megatron.core.optimizer").Adam
    assert getattr(importlib.import_module(module), name) is taken


def test_without_cuda_gloo_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = find_accelerators()
    assert found.backend == "gloo"
    assert "torch" in found.cuda.reason


def test_with_cuda_nccl_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    found = find_accelerators()
    assert found.backend == "nccl"


def test_the_refusal_needs_no_torch() -> None:
    script = (
        "import sys; from ultramem_megatron.parallel.accelerators import refuse_wrong_apex; refuse_wrong_apex();"
        "print(sorted({'torch', 'megatron', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
