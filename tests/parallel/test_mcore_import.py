"""What megatron-core has compiled is compiled when it is called, and only then."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ultramem_megatron.parallel.mcore_import import compiled_at_first_call


def double(x: Tensor) -> Tensor:
    """Twice as much."""
    return 2 * x


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of what the compiler is given, on a machine with a GPU."""
    given: list[str] = []

    def compile_(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        given.append(function.__name__)
        return lambda *args, **kwargs: function(*args, **kwargs) + 0.5

    monkeypatch.setattr(torch, "compile", compile_)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    return given


def test_the_compiler_gets_it_at_the_first_call_and_once(compiled: list[str]) -> None:
    later = compiled_at_first_call(double)
    assert (later.__name__, later.__doc__) == ("double", "Twice as much.")
    assert compiled == []
    assert [later(torch.tensor(1.0)).item(), later(x=torch.tensor(2.0)).item()] == [2.5, 4.5]
    assert compiled == ["double"]


def test_within_what_is_compiled_as_a_whole_it_is_plain_code(
    compiled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert compiled_at_first_call(double)(torch.tensor(1.0)).item() == 2
    assert compiled == []


def test_without_a_gpu_it_stays_as_it_is(compiled: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert compiled_at_first_call(double)(torch.tensor(1.0)).item() == 2
    assert compiled == []
