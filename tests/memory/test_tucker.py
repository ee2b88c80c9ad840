"""The singular vectors that choose candidates: their signs, and that they survive a checkpoint."""

from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

# Letters: H heads, h cores, r Tucker rank.

H, CORES, RANK = 5, 2, 3


@pytest.fixture
def core(megatron: ModuleType) -> Any:
    """A Tucker core with uniform entries, as a run starts with."""
    from ultramem_megatron.memory.tucker import TuckerCore

    core = TuckerCore(H, CORES, RANK, torch.float32)
    with torch.no_grad():
        core.weight.copy_(torch.rand(core.weight.shape))
    core.refresh()
    return core


def leading(core: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Left and right leading singular vectors in float64 and all singular values, by eigenvectors of C C^T."""
    summed = core.weight.detach().double().sum(dim=1)
    values, left = torch.linalg.eigh(summed @ summed.mT)
    u = left[..., -1]
    t = (summed.mT @ u.unsqueeze(-1)).squeeze(-1)
    return u, t / t.norm(dim=-1, keepdim=True), values.flip(-1).clamp(min=0).sqrt()


def test_they_are_the_leading_pair_of_the_summed_core(core: Any) -> None:
    u, t, values = leading(core)
    sign = torch.where((u * core.left).sum(-1, keepdim=True) < 0, -1, 1)
    torch.testing.assert_close(core.left.double(), sign * u, atol=1e-6, rtol=0)
    torch.testing.assert_close(core.right.double(), sign * t, atol=1e-6, rtol=0)
    summed = core.weight.detach().double().sum(dim=1)
    reached = torch.einsum("ha,hab,hb->h", core.left.double(), summed, core.right.double())
    torch.testing.assert_close(reached, values[:, 0], atol=1e-5, rtol=0)


def test_at_first_the_left_vector_has_a_positive_sum(core: Any) -> None:
    """LAPACK returns an all-negative left vector for nearly every core with positive entries: it must be turned."""
    summed = core.weight.detach().double().sum(dim=1)
    assert (torch.linalg.svd(summed)[0][..., 0].sum(-1) < 0).any(), "the case means something"
    assert (core.left.sum(-1) > 0).all() and (core.right.sum(-1) > 0).all()


def test_small_changes_never_flip_them(core: Any) -> None:
    """A walk from a core to its mirror image: the pair turns with it step by step, and ends opposite, because it
    follows where it was, not the sign of its sum."""
    start = core.weight.detach().clone()
    first = core.left.clone(), core.right.clone()
    turn = torch.eye(RANK)
    angle = torch.tensor(torch.pi / 60)
    rotation = torch.eye(RANK)
    rotation[0, 0] = rotation[1, 1] = angle.cos()
    rotation[0, 1], rotation[1, 0] = -angle.sin(), angle.sin()
    for _ in range(60):
        turn = rotation @ turn
        before = core.left.clone(), core.right.clone()
        with torch.no_grad():
            core.weight.copy_(turn @ start @ turn.T)
        core.refresh()
        assert ((core.left * before[0]).sum(-1) > 0.99).all()
        assert ((core.right * before[1]).sum(-1) > 0.99).all()
    # half a turn of the first two axes: those parts of the vectors are negated
    torch.testing.assert_close(core.left[:, :2], -first[0][:, :2], atol=1e-4, rtol=0)
    torch.testing.assert_close(core.right[:, :2], -first[1][:, :2], atol=1e-4, rtol=0)
    assert (core.left.sum(-1) < 0).any(), "the convention of the start would have flipped some"


@pytest.fixture
def unsure_signs(monkeypatch: pytest.MonkeyPatch) -> torch.Generator:
    """From now on ``torch.linalg.svd`` negates pairs of singular vectors by chance, as another LAPACK may."""
    generator, svd = torch.Generator().manual_seed(0), torch.linalg.svd

    def turned(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        left, values, right = svd(matrix)
        sign = torch.randint(2, values.shape, generator=generator) * 2 - 1
        return left * sign.unsqueeze(-2), values, right * sign.unsqueeze(-1)

    monkeypatch.setattr(torch.linalg, "svd", turned)
    return generator


@pytest.mark.parametrize(
    "entries",
    [
        pytest.param([[2.0, 1.0], [0.5, 1.0]], id="positive"),
        pytest.param([[-2.0, 1.0], [0.5, -1.0]], id="mixed"),
        pytest.param([[1.0, -1.0], [-1.0, 1.0]], id="sum-of-zero"),
        pytest.param([[2.0, 0.0], [0.0, 1.0]], id="an-axis"),
    ],
)
def test_the_sign_is_not_lapacks(
    unsure_signs: torch.Generator, entries: list[list[float]], megatron: ModuleType
) -> None:
    """Ten fresh cores agree, and then follow a core whose leading vector jumps to one at right angles to it."""
    cores = []
    for _ in range(10):
        fresh = one_core(entries)
        fresh.refresh()
        cores.append([fresh.left.clone(), fresh.right.clone()])
        with torch.no_grad():
            quarter = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
            fresh.weight.copy_(quarter @ fresh.weight @ quarter.T)
        fresh.refresh()
        cores[-1] += [fresh.left.clone(), fresh.right.clone()]
        assert (cores[-1][0] * cores[-1][2]).sum().abs() < 1e-6, "at right angles"
    assert all(torch.equal(a, b) for found in cores for a, b in zip(found, cores[0], strict=True))
    rebuilt = torch.einsum("ha,hab,hb->h", cores[0][0], torch.tensor([entries]), cores[0][1])
    assert rebuilt > 0, "u and t belong together"


def one_core(entries: list[list[float]]) -> Any:
    from ultramem_megatron.memory.tucker import TuckerCore

    core = TuckerCore(1, 1, 2, torch.float32)
    with torch.no_grad():
        core.weight.copy_(torch.tensor(entries))
    return core


def test_through_the_mirror_and_back(megatron: ModuleType) -> None:
    """Of rank 2, half a turn of both sides leads a core back to itself, and its pair to the opposite: what a core
    chooses depends on where it has been. The way back undoes it, to the last digit of fp32."""
    start = torch.tensor([[2.0, 1.0], [0.5, 1.0]])
    core = one_core(start.tolist())
    core.refresh()
    first = core.left.clone(), core.right.clone()

    def turn(steps: range) -> None:
        for step in steps:
            angle = torch.tensor(torch.pi * step / 30)
            rotation = torch.tensor([[angle.cos(), -angle.sin()], [angle.sin(), angle.cos()]])
            with torch.no_grad():
                core.weight.copy_(rotation @ start @ rotation.T)
            core.refresh()

    turn(range(1, 31))
    torch.testing.assert_close(core.weight.detach()[0, 0], start)
    torch.testing.assert_close(core.left, -first[0])
    torch.testing.assert_close(core.right, -first[1])
    turn(range(29, -1, -1))
    torch.testing.assert_close(core.left, first[0])
    torch.testing.assert_close(core.right, first[1])


def test_refresh_is_deterministic_and_idempotent(core: Any) -> None:
    left, right = core.left.clone(), core.right.clone()
    core.refresh()
    assert torch.equal(core.left, left) and torch.equal(core.right, right)


def test_a_resumed_core_keeps_its_sign(core: Any) -> None:
    from ultramem_megatron.memory.tucker import TuckerCore

    core.left.neg_(), core.right.neg_()  # as continuity may leave them
    state = {name: value.clone() for name, value in core.state_dict().items()}
    assert set(state) == {"weight", "left", "right"}
    resumed = TuckerCore(H, CORES, RANK, torch.float32)
    resumed.load_state_dict(state)
    for one in (core, resumed):
        one.refresh()
    assert torch.equal(resumed.left, core.left) and torch.equal(resumed.right, core.right)
    assert (resumed.left.sum(-1) < 0).all()


def test_a_bf16_core_is_widened_before_it_is_summed(megatron: ModuleType) -> None:
    """1 + 2^-8 is 1 in bf16: the forward pass sums in fp32, and so must the vectors."""
    from ultramem_megatron.memory.tucker import TuckerCore

    core = TuckerCore(1, 2, 2, torch.bfloat16)
    with torch.no_grad():
        core.weight.copy_(torch.tensor([[[[1.0, 0.0], [0.0, 1.0]], [[0.0, 0.0], [0.0, 2.0**-8]]]]))
    core.refresh()
    assert core.left.dtype is torch.float32
    assert core.left.abs().tolist() == [[0.0, 1.0]], "the larger diagonal entry leads"


def test_they_carry_no_gradient(core: Any) -> None:
    assert not core.left.requires_grad and not core.right.requires_grad
    assert core.weight.grad is None
