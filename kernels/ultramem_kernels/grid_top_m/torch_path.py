"""``best_slots`` on CPUs: the grid as ``grid_top_m`` has it, then what its winners need, by gather and einsum."""

import torch
from torch import Tensor

from ultramem_kernels.grid_top_m.addresses import Addresses
from ultramem_kernels.grid_top_m.op import grid_top_m

# Letters: as in reference.py; 2 sides, rows before columns.


def best_slots(
    sides_TH2rc: Tensor, index_TH2c: Tensor, cores_Hhrr: Tensor, m: int, addresses: Addresses
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scores, rows, blocks and int32 places; arguments as in ``slots.best_slots``."""
    rows_THrc, columns_THrc = sides_TH2rc.unbind(2)
    places_THm = grid_top_m(rows_THrc, columns_THrc, cores_Hhrr.sum(dim=1), m)
    row_THm, column_THm = _sides_of(places_THm, sides_TH2rc.shape[-1])
    slots_THm = index_TH2c[:, :, 0].gather(-1, row_THm) * addresses.side + index_TH2c[:, :, 1].gather(-1, column_THm)
    picked_THm, blocks_THm = addresses.locate(slots_THm)
    of_rows_THrm, of_columns_THrm = _of_picks(rows_THrc, row_THm), _of_picks(columns_THrc, column_THm)
    scores_hTHm = torch.einsum("tham,hcab,thbm->cthm", of_rows_THrm, cores_Hhrr, of_columns_THrm)
    return scores_hTHm.contiguous(), picked_THm, blocks_THm, places_THm.int()


def best_slots_backward(
    grad_hTHm: Tensor, sides_TH2rc: Tensor, cores_Hhrr: Tensor, places_THm: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients of sides and cores; arguments as in ``slots.py``."""
    rows_THrc, columns_THrc = sides_TH2rc.unbind(2)
    row_THm, column_THm = _sides_of(places_THm.long(), sides_TH2rc.shape[-1])
    of_rows_THrm, of_columns_THrm = _of_picks(rows_THrc, row_THm), _of_picks(columns_THrc, column_THm)
    # what a pick's row is multiplied with in each core; its product with the row is the score
    weights_THham = torch.einsum("hcab,thbm->thcam", cores_Hhrr, of_columns_THrm)
    rows_grad_THrm = torch.einsum("cthm,thcam->tham", grad_hTHm, weights_THham)
    weighed_THham = torch.einsum("cthm,tham->thcam", grad_hTHm, of_rows_THrm)
    columns_grad_THrm = torch.einsum("thcam,hcab->thbm", weighed_THham, cores_Hhrr)
    cores_grad_Hhrr = torch.einsum("thcam,thbm->hcab", weighed_THham, of_columns_THrm)
    sides_grad_TH2rc = torch.zeros_like(sides_TH2rc, memory_format=torch.contiguous_format)
    for side, (number_THm, grad_THrm) in enumerate(((row_THm, rows_grad_THrm), (column_THm, columns_grad_THrm))):
        sides_grad_TH2rc[:, :, side].scatter_add_(-1, number_THm.unsqueeze(2).expand_as(grad_THrm), grad_THrm)
    return sides_grad_TH2rc, cores_grad_Hhrr.contiguous()


def _sides_of(places_THm: Tensor, candidates: int) -> tuple[Tensor, Tensor]:
    return places_THm // candidates, places_THm % candidates


def _of_picks(side_THrc: Tensor, number_THm: Tensor) -> Tensor:
    return side_THrc.gather(-1, number_THm.unsqueeze(2).expand(-1, -1, side_THrc.shape[2], -1))
