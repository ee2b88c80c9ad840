"""How parameters start, given draws."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ultramem_megatron.memory.initial_rules import constant, last_tap, normal, unit_core


@dataclass(frozen=True)
class Drawn:
    """Draws that are known."""

    shape: tuple[int, ...]

    def normal(self) -> Tensor:
        return torch.arange(torch.Size(self.shape).numel()).view(self.shape).float()

    def uniform(self) -> Tensor:
        return torch.rand(self.shape)


def test_normal_scales_the_draws() -> None:
    assert normal(0.5)(Drawn((2, 2))).tolist() == [[0.0, 0.5], [1.0, 1.5]]


def test_constant_ignores_them() -> None:
    assert constant(3.0)(Drawn((2,))).tolist() == [3.0, 3.0]


def test_a_convolution_hands_tokens_through_at_first() -> None:
    assert last_tap()(Drawn((2, 3))).tolist() == [[0, 0, 1], [0, 0, 1]]


def test_cores_average_to_norm_one() -> None:
    core = unit_core()(Drawn((5, 3, 2, 2)))
    assert (core > 0).all()
    torch.testing.assert_close(core.mean(dim=1).norm(dim=(-2, -1)), torch.ones(5))
    assert core.std(dim=1).min() > 0, "the cores of a head differ"
