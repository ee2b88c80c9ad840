"""The oracle's choice of slots, for one head of one token: two stages for UltraMem, sums for product keys."""

# Letters: n row (or column) keys, R Tucker rank, C score cores, M slots per head, K = slots per token, T tokens.

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Picks:
    """The slots of one head of one token. M is ``top_m`` here, and ``candidates`` inside the two functions below."""

    slots_M: Tensor
    scores_CM: Tensor
    margin: float


def pick_in_two_stages(
    row_scores_Rn: Tensor,
    column_scores_Rn: Tensor,
    core_CRR: Tensor,
    u_R: Tensor,
    t_R: Tensor,
    *,
    candidates: int,
    top_m: int,
) -> Picks:
    """TDQKR (paper equations 4 to 10): candidates by the leading singular vectors, then the summed core decides.

    A pair whose rank-1 score is high because both sides are very negative is never a candidate: this is not an
    exhaustive search, and is not meant to be.
    """
    rows_M, row_margin = _top(u_R @ row_scores_Rn, candidates)
    columns_M, column_margin = _top(t_R @ column_scores_Rn, candidates)
    i_M, j_M, grid_margin = _top_of_grid(
        row_scores_Rn[:, rows_M].T @ core_CRR.sum(dim=0) @ column_scores_Rn[:, columns_M], rows_M, columns_M, top_m
    )
    scores_CM = torch.stack(
        [((core_RR @ column_scores_Rn[:, j_M]) * row_scores_Rn[:, i_M]).sum(dim=0) for core_RR in core_CRR]
    )
    side = row_scores_Rn.shape[1]
    return Picks(i_M * side + j_M, scores_CM, min(row_margin, column_margin, grid_margin))


def pick_by_sum(row_scores_n: Tensor, column_scores_n: Tensor, *, candidates: int, top_m: int) -> Picks:
    """Product keys: the scores of a row and a column key add."""
    rows_M, row_margin = _top(row_scores_n, candidates)
    columns_M, column_margin = _top(column_scores_n, candidates)
    grid_MM = row_scores_n[rows_M].unsqueeze(1) + column_scores_n[columns_M].unsqueeze(0)
    i_M, j_M, grid_margin = _top_of_grid(grid_MM, rows_M, columns_M, top_m)
    sums_1M = (row_scores_n[i_M] + column_scores_n[j_M]).unsqueeze(0)
    return Picks(i_M * len(row_scores_n) + j_M, sums_1M, min(row_margin, column_margin, grid_margin))


def _top(scores: Tensor, top_m: int) -> tuple[Tensor, float]:
    """Indices of the ``top_m`` largest, best first, ties to the smaller index; and the distance to the next one."""
    values, order = scores.detach().sort(descending=True, stable=True)
    margin = float(values[top_m - 1] - values[top_m]) if len(values) > top_m else math.inf
    return order[:top_m], margin


def _top_of_grid(grid_MM: Tensor, rows_M: Tensor, columns_M: Tensor, top_m: int) -> tuple[Tensor, Tensor, float]:
    """Row and column keys of the best candidates, ties to the smaller slot.

    The grid is first put into the order of keys, so that the smaller slot is the smaller index of the grid.
    """
    rows_M, row_order_M = rows_M.sort()
    columns_M, column_order_M = columns_M.sort()
    best_M, margin = _top(grid_MM[row_order_M][:, column_order_M].flatten(), top_m)
    return rows_M[best_M // len(columns_M)], columns_M[best_M % len(columns_M)], margin


def join_heads(picks_TH: list[list[Picks]]) -> tuple[Tensor, Tensor, float]:
    """Heads side by side: slots [T, K], scores [C, T, K], the smallest margin."""
    slots_TK = torch.stack([torch.cat([pick.slots_M for pick in heads]) for heads in picks_TH])
    scores_TCK = torch.stack([torch.cat([pick.scores_CM for pick in heads], dim=1) for heads in picks_TH])
    return slots_TK, scores_TCK.transpose(0, 1), min(pick.margin for heads in picks_TH for pick in heads)
