"""The m largest of many numbers, on a CPU: exactly, and faster than ``torch.topk`` where m is few of many."""

import math

import torch
from torch import Tensor

# Letters: R rows, n numbers of a row, m kept, f found (one more, if there is), G groups, s numbers of a group,
#          b groups with the best, c candidates.


def top_m_reference(x_Rn: Tensor, m: int) -> Tensor:
    """int64 [R, m], places of the m largest numbers of each row, from the largest down; ties to the smaller place."""
    return x_Rn.sort(dim=1, descending=True, stable=True).indices[:, :m]


def top_m(x_Rn: Tensor, m: int, *, group_size: int | None = None) -> Tensor:
    """int64 [R, m], the same places from the largest down; of equal numbers any may come first.

    The m largest numbers lie in the m groups of largest maxima, so that g-fold fewer numbers are ranked once, and then
    those of m groups; m * g + n / g is least at g = sqrt(n / m). One more than m are found in this way: of rows where
    that one, which is dropped, equals the least that is kept, the choice is made again by the rule for ties.

    Args:
        x_Rn: Any numbers.
        m: 1 to n.
        group_size: g, if the caller knows better; at most n / m.
    """
    n = x_Rn.shape[1]
    size = group_size or 2 ** max(0, round(math.log2(n / m) / 2))
    found = min(m + 1, n)
    if size == 1:
        best = x_Rn.topk(found, dim=1, sorted=True)
        places_Rf = best.indices
    else:
        places_Rc = _in_best_groups(x_Rn, found, size)
        best = x_Rn.gather(1, places_Rc).topk(found, dim=1, sorted=True)
        places_Rf = places_Rc.gather(1, best.indices)
    chosen_Rm = places_Rf[:, :m]
    if found > m:
        tied = (best.values[:, m] == best.values[:, m - 1]).nonzero().squeeze(1)
        chosen_Rm[tied] = top_m_reference(x_Rn[tied], m)
    return chosen_Rm


def _in_best_groups(x_Rn: Tensor, best: int, size: int) -> Tensor:
    """Places of all numbers of the ``best`` groups with the largest maxima, and of those that are in no group.

    Group i has the places i, i + n // size, i + 2 * (n // size), ...: neighbours are in different groups, so that
    maxima are taken of whole vectors.
    """
    rows, n = x_Rn.shape
    groups = n // size
    maxima_RG = x_Rn[:, : groups * size].unflatten(1, (size, groups)).amax(dim=1)
    best_Rb = maxima_RG.topk(min(best, groups), dim=1, sorted=False).indices
    of_groups_Rsb = best_Rb.unsqueeze(1) + torch.arange(size).unsqueeze(1) * groups
    rest = torch.arange(groups * size, n).expand(rows, -1)
    return torch.cat([of_groups_Rsb.flatten(1), rest], dim=1)
