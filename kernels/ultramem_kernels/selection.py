"""The m largest of many numbers, on a CPU: exactly, and faster than ``torch.topk`` where m is few of many."""

import math

import torch
from torch import Tensor

# Letters: R rows, n numbers of a row, m kept, G groups, c candidates.


def top_m_reference(x_Rn: Tensor, m: int) -> Tensor:
    """int64 [R, m], places of the m largest numbers of each row, from the largest down; ties to the smaller place."""
    return x_Rn.sort(dim=1, descending=True, stable=True).indices[:, :m]


def top_m(x_Rn: Tensor, m: int, *, group_size: int | None = None) -> Tensor:
    """int64 [R, m], the same places from the largest down; of equal numbers any may come first.

    The m largest numbers lie in the m groups of largest maxima, so that g-fold fewer numbers are ranked once, and then
    those of m groups; m * g + n / g is least at g = sqrt(n / m). Of rows where a number that was dropped equals the
    least that was kept, the choice is made again by the rule for ties.

    Args:
        x_Rn: Any numbers.
        m: 1 to n.
        group_size: g, if the caller knows better; at most n / m.
    """
    n = x_Rn.shape[1]
    size = group_size or 2 ** max(0, round(math.log2(n / m) / 2))
    if size == 1:
        best = x_Rn.topk(m, dim=1, sorted=True)
        chosen_Rm = best.indices
    else:
        places_Rc = _in_best_groups(x_Rn, m, size)
        best = x_Rn.gather(1, places_Rc).topk(m, dim=1, sorted=True)
        chosen_Rm = places_Rc.gather(1, best.indices)
    least_R1 = best.values.amin(dim=1, keepdim=True)
    tied = (torch.count_nonzero(x_Rn >= least_R1, dim=1) > m).nonzero().squeeze(1)
    if tied.numel():
        chosen_Rm[tied] = top_m_reference(x_Rn[tied], m)
    return chosen_Rm


def _in_best_groups(x_Rn: Tensor, m: int, size: int) -> Tensor:
    """Places of all numbers of the m groups with the largest maxima, and of those that are in no group.

    Group i has the places i, i + n // size, i + 2 * (n // size), ...: neighbours are in different groups, so that
    maxima are taken of whole vectors.
    """
    rows, n = x_Rn.shape
    groups = n // size
    maxima_RG = x_Rn[:, : groups * size].unflatten(1, (size, groups)).amax(dim=1)
    best_Rm = maxima_RG.topk(m, dim=1, sorted=False).indices
    of_groups = best_Rm.unsqueeze(1) + torch.arange(size).unsqueeze(1) * groups
    rest = torch.arange(groups * size, n).expand(rows, -1)
    return torch.cat([of_groups.flatten(1), rest], dim=1)
