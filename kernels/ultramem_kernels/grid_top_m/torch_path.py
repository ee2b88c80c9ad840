"""``best_slots`` on CPUs: the grid as ``grid_top_m`` has it, then what its winners need, by gather and einsum."""

import torch
from torch import Tensor

from ultramem_kernels.grid_top_m.addresses import Addresses
from ultramem_kernels.grid_top_m.op import grid_top_m

# Letters: as in reference.py; 2 sides, rows before columns; g = h * r.


def best_slots(
    sides_TH2rc: Tensor, index_TH2c: Tensor, cores_Hhrr: Tensor, m: int, addresses: Addresses
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scores, rows, blocks and int32 places; arguments as in ``slots.best_slots``."""
    rows_THrc, columns_THrc = sides_TH2rc.unbind(2)
    places_THm = grid_top_m(rows_THrc, columns_THrc, cores_Hhrr.sum(dim=1), m)
    row_THm, column_THm = _sides_of(places_THm, sides_TH2rc.shape[-1])
    keys = (index_TH2c[:, :, 0].gather(-1, row_THm), index_TH2c[:, :, 1].gather(-1, column_THm))
    picked_THm, blocks_THm = addresses.locate_keys(*keys)
    of_rows_THrm, of_columns_THrm = _of_picks(rows_THrc, row_THm), _of_picks(columns_THrc, column_THm)
    scores_THhm = _sum_of_products(of_rows_THrm.unsqueeze(2), _times_columns(cores_Hhrr, of_columns_THrm), dim=3)
    return scores_THhm.permute(2, 0, 1, 3).contiguous(), picked_THm, blocks_THm, places_THm.int()


def best_slots_backward(
    grad_hTHm: Tensor, sides_TH2rc: Tensor, cores_Hhrr: Tensor, places_THm: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients of sides and cores; arguments as in ``slots.py``."""
    rows_THrc, columns_THrc = sides_TH2rc.unbind(2)
    row_THm, column_THm = _sides_of(places_THm.long(), sides_TH2rc.shape[-1])
    of_rows_THrm, of_columns_THrm = _of_picks(rows_THrc, row_THm), _of_picks(columns_THrc, column_THm)
    grad_THh1m = grad_hTHm.permute(1, 2, 0, 3).unsqueeze(3)
    rows_grad_THrm = _sum_of_products(grad_THh1m, _times_columns(cores_Hhrr, of_columns_THrm), dim=2)
    columns_grad_THrm = _sum_of_products(grad_THh1m, _times_columns(cores_Hhrr.mT, of_rows_THrm), dim=2)
    weighed_THhrm = grad_THh1m * of_rows_THrm.unsqueeze(2)
    cores_grad_Hgr = (weighed_THhrm.flatten(2, 3) @ of_columns_THrm.mT).sum(dim=0)
    sides_grad_TH2rc = torch.zeros_like(sides_TH2rc, memory_format=torch.contiguous_format)
    for side, (number_THm, grad_THrm) in enumerate(((row_THm, rows_grad_THrm), (column_THm, columns_grad_THrm))):
        sides_grad_TH2rc[:, :, side].scatter_add_(-1, number_THm.unsqueeze(2).expand_as(grad_THrm), grad_THrm)
    return sides_grad_TH2rc, cores_grad_Hgr.view(cores_Hhrr.shape)


def _times_columns(cores_Hhrr: Tensor, side_THrm: Tensor) -> Tensor:
    """Each core times the picks' column scores, [T, H, h, r, m]; the product with a row's is the pick's score."""
    return torch.einsum("hcab,thbm->thcam", cores_Hhrr, side_THrm)


def _sum_of_products(x: Tensor, y: Tensor, dim: int) -> Tensor:
    """``(x * y).sum(dim)`` of few terms, which torch's sum takes one at a time."""
    pairs = zip(torch.broadcast_tensors(x, y)[0].unbind(dim), y.unbind(dim), strict=True)
    first_x, first_y = next(pairs)
    total = first_x * first_y
    for next_x, next_y in pairs:
        total.addcmul_(next_x, next_y)
    return total


def _sides_of(places_THm: Tensor, candidates: int) -> tuple[Tensor, Tensor]:
    row_THm = places_THm // candidates
    return row_THm, torch.sub(places_THm, row_THm, alpha=candidates)


def _of_picks(side_THrc: Tensor, number_THm: Tensor) -> Tensor:
    return side_THrc.gather(-1, number_THm.unsqueeze(2).expand(-1, -1, side_THrc.shape[2], -1))
