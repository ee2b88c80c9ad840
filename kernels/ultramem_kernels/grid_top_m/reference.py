"""The meaning of ``grid_top_m`` and ``best_slots``, in plain PyTorch."""

import torch
from torch import Tensor

from ultramem_kernels.grid_top_m.addresses import Addresses
from ultramem_kernels.selection import top_m_reference

# Letters: T tokens, H heads, r components of a score, c candidates of a side, m kept, h cores.


def grid_top_m_reference(rows_THrc: Tensor, columns_THrc: Tensor, core_Hrr: Tensor, m: int) -> Tensor:
    """The places of the largest ``s_row^T C s_col`` among c x c candidates (UltraMem paper, eq. 10).

    Args:
        rows_THrc: fp32 scores of the candidate rows.
        columns_THrc: fp32 scores of the candidate columns.
        core_Hrr: fp32, the sum of the score cores.
        m: Places to keep, at most c * c.

    Returns:
        int64 [T, H, m] of ``row * c + column``, from the best down; ties go to the smaller place.
    """
    grid_THcc = torch.einsum("thai,hab,thbj->thij", rows_THrc, core_Hrr, columns_THrc)
    grid_Rn = grid_THcc.flatten(0, 1).flatten(1)
    return top_m_reference(grid_Rn, m).view(*rows_THrc.shape[:2], m)


def best_slots_reference(
    sides_TH2rc: Tensor, index_TH2c: Tensor, cores_Hhrr: Tensor, m: int, addresses: Addresses
) -> tuple[Tensor, Tensor, Tensor]:
    """The m slots with the largest ``s_row^T C s_col``, C the sum of the cores: their values' places and their scores.

    Args:
        sides_TH2rc: fp32 scores of the candidate rows, and of the candidate columns.
        index_TH2c: int64 keys of the candidates; a slot is ``row key * S + column key``.
        cores_Hhrr: fp32.
        m: Slots to keep, at most c * c.
        addresses: Which row of the table, and which block, a slot has.

    Returns:
        int32 rows [T, H, m], uint8 blocks [T, H, m], and scores [h, T, H, m] (UltraMem paper, eq. 16-17).
    """
    rows_THrc, columns_THrc = sides_TH2rc.unbind(2)
    places_THm = grid_top_m_reference(rows_THrc, columns_THrc, cores_Hhrr.sum(dim=1), m)
    slots_THcc = index_TH2c[:, :, 0, :, None] * addresses.side + index_TH2c[:, :, 1, None, :]
    picked_THm, blocks_THm = (x.flatten(2).gather(2, places_THm) for x in addresses.locate(slots_THcc))
    grids_hTHcc = torch.einsum("thai,hkab,thbj->kthij", rows_THrc, cores_Hhrr, columns_THrc)
    scores_hTHm = grids_hTHcc.flatten(3).gather(3, places_THm.expand(cores_Hhrr.shape[1], -1, -1, -1))
    return picked_THm, blocks_THm, scores_hTHm
