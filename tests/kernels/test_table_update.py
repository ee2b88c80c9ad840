"""The step of value tables: AdamW where all is updated, and what stays where only touched elements are."""

import pytest
import torch
from torch import Tensor

from ultramem_kernels.arguments import ArgumentError
from ultramem_kernels.table_update import AdamW, torch_path, update_table, update_table_reference
from ultramem_megatron.testing.tolerances import assert_agrees

BF16, FP32 = torch.bfloat16, torch.float32
SETTINGS = AdamW(learning_rate=0.01, beta1=0.9, beta2=0.99, epsilon=1e-8, weight_decay=0.1)
SHAPE = (11, 60)
"""A line, a part and a tile end inside of rows."""
ADAMW = {"rtol": 1e-5, "atol": 1e-6}
"""fp32, in another order."""


@pytest.fixture(params=["cpu", "kernel"])
def where(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """On CPUs in several parts; by the Triton kernel, interpreted."""
    if request.param == "kernel":
        request.getfixturevalue("interpreter")
    monkeypatch.setattr(torch_path, "PART_ELEMENTS", 300)
    return str(request.param)


def update(where: str, state: list[Tensor], step: int, *, touched_only: bool, clear_grad: bool = True) -> None:
    """``state``: weight, master, both moments, gradient."""
    if where == "cpu":
        update_table(*state, step, SETTINGS, touched_only=touched_only, clear_grad=clear_grad)
        return
    from ultramem_kernels.table_update import triton_kernel

    weight = None if state[0] is state[1] else state[0]
    triton_kernel.update(weight, *state[1:], step, SETTINGS, touched_only=touched_only, clear_grad=clear_grad)


@pytest.mark.parametrize("touched_only", [False, True])
@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
def test_it_is_adamw(dtype: torch.dtype, touched_only: bool, where: str) -> None:
    """Two steps; every element has a gradient. The bf16 copy is the master rounded once, the gradient is cleared."""
    master = torch.randn(SHAPE)
    weight = master if dtype is FP32 else master.to(dtype)
    state = [weight, master, torch.zeros(SHAPE), torch.zeros(SHAPE)]
    oracle = torch.nn.Parameter(master.clone())
    adam = torch.optim.AdamW([oracle], lr=0.01, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.1)
    for step in (1, 2):
        grad = torch.randn(SHAPE)
        oracle.grad = grad.clone()
        adam.step()
        update(where, [*state, grad], step, touched_only=touched_only)
        assert grad.count_nonzero() == 0
    torch.testing.assert_close(master, oracle.detach(), **ADAMW)
    if where == "kernel":  # the interpreter cuts digits off where a GPU rounds
        assert_agrees(weight, master.double(), computed_in=dtype)
    else:
        assert torch.equal(weight, master.to(dtype))


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("moments", [FP32, BF16], ids=str)
def test_touched_elements_follow_the_reference_and_others_stay(moments: torch.dtype, share: float, where: str) -> None:
    """Whole rows and single elements without gradient; the gradient is kept on demand."""
    grad = torch.randn(SHAPE) * (torch.rand(SHAPE[0], 1) < share) * (torch.rand(SHAPE) < 0.9)
    master = torch.randn(SHAPE).bfloat16().float()  # the interpreter cuts digits off where a GPU rounds
    mean, square = torch.randn(SHAPE).to(moments), torch.rand(SHAPE).to(moments)
    given = [master.bfloat16(), master, mean, square, grad]
    before, expected = [x.clone() for x in given], [x.clone() for x in given]
    update(where, given, 3, touched_only=True, clear_grad=False)
    update_table_reference(*expected, 3, SETTINGS, touched_only=True, clear_grad=False)
    still = grad == 0
    for found, wanted, old in zip(given, expected, before, strict=True):
        assert torch.equal(found[still], old[still])
        loose = found.dtype is BF16  # may be rounded to either of two neighbours
        torch.testing.assert_close(found, wanted, rtol=2**-7 if loose else 1e-5, atol=1e-6)
    assert torch.equal(grad, before[4])
    assert share == 0 or not torch.equal(master, before[1])


def test_operator_is_well_formed() -> None:
    rates = [0.01, 0.9, 0.99, 1e-8, 0.1]
    for weight in (None, torch.zeros(70).bfloat16()):
        for touched_only in (False, True):
            inputs = (weight, *(torch.rand(70) for _ in range(4)), 3, rates, touched_only, True)
            torch.library.opcheck(torch.ops.ultramem.update_table.default, inputs)


def test_bad_arguments_are_named() -> None:
    good = [torch.rand(4, 6) for _ in range(5)]
    for place, bad, message in (
        (1, torch.rand(4, 6).bfloat16(), r"master is torch\.bfloat16; expected torch\.float32"),
        (2, torch.rand(4, 6).double(), r"mean is torch\.float64; expected torch\.bfloat16 or torch\.float32"),
        (3, torch.rand(4, 5), r"square has shape \[4, 5\]; expected \[4, 6\]"),
        (4, torch.rand(6, 4).t(), "grad has strides .* expected a contiguous tensor"),
    ):
        with pytest.raises(ArgumentError, match=message):
            update_table(*good[:place], bad, *good[place + 1 :], 1, SETTINGS)
    with pytest.raises(ArgumentError, match="step is 0; expected 1 or more"):
        update_table(*good, 0, SETTINGS)
