"""Triton is an optional dependency: without it, tests of its kernels are skipped."""

import pytest


@pytest.fixture(scope="session")
def interpreter() -> None:
    """Triton's interpreter, where there is no GPU: ``tests/conftest.py`` asks for it."""
    triton = pytest.importorskip("triton", reason="triton is not installed: pip install 'triton>=3.6'")
    if not triton.knobs.runtime.interpret:
        pytest.skip("a GPU is here: the kernels are tested on it (tests/gpu)")
