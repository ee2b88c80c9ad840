"""How a parameter starts, as a function of draws that do not depend on the layout."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor


class Draws(Protocol):
    """Random numbers for one (shard of a) parameter, functions of seed, name and global index alone."""

    shape: tuple[int, ...]

    def normal(self) -> Tensor:
        """Standard normal, fp32, of ``shape``."""

    def uniform(self) -> Tensor:
        """Uniform on (0, 1), fp32, of ``shape``."""


InitialRule = Callable[[Draws], Tensor]


def normal(std: float) -> InitialRule:
    """N(0, std ** 2)."""
    return lambda draws: draws.normal() * std


def constant(value: float) -> InitialRule:
    """The same number everywhere."""
    return lambda draws: torch.full(draws.shape, value)


def uniform() -> InitialRule:
    """U(0, 1)."""
    return lambda draws: draws.uniform()


def last_tap() -> InitialRule:
    """[D, kernel]: a causal convolution that at first hands each token through."""

    def rule(draws: Draws) -> Tensor:
        weight = torch.zeros(draws.shape)
        weight[:, -1] = 1.0
        return weight

    return rule


def unit_core() -> InitialRule:
    """[H, h, r, r]: uniform entries, scaled so that the mean of a head's cores has Frobenius norm 1.

    The paper does not state the distribution; the published code draws U(0, 1). Scaled so, a grid score is a
    weighted sum of products of unit-variance scores with squared weights adding to 1, and each core's share of
    it averages one unit, which the values' initial size assumes.
    """

    def rule(draws: Draws) -> Tensor:
        core = draws.uniform()
        return core / core.mean(dim=1, keepdim=True).norm(dim=(-2, -1), keepdim=True)

    return rule
