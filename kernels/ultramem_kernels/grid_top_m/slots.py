"""``best_slots``: checks, the torch operator, and its gradient. Stage 2 of retrieval as a whole."""

import torch
from torch import Tensor

from ultramem_kernels import arguments
from ultramem_kernels.grid_top_m import torch_path
from ultramem_kernels.grid_top_m.addresses import Addresses
from ultramem_kernels.triton_kernels import triton_kernels

# Letters: as in reference.py; 2 sides, rows before columns.

MOST_ROWS = 2**31
"""Of a table: rows are numbered in int32."""


def best_slots(
    sides_TH2rc: Tensor, index_TH2c: Tensor, cores_Hhrr: Tensor, m: int, addresses: Addresses
) -> tuple[Tensor, Tensor, Tensor]:
    """The picks of each head: where their values lie, and one score of each core; see ``best_slots_reference``.

    Gradients flow from the scores to ``sides_TH2rc`` and ``cores_Hhrr``; what is picked has none.

    Args:
        sides_TH2rc: fp32 (fp64 on CPUs).
        index_TH2c: int64.
        cores_Hhrr: The type of ``sides_TH2rc``.
        m: 1 to c * c.
        addresses: Its offsets, if any, int32 and on the same device.

    Returns:
        int32 rows [T, H, m], uint8 blocks [T, H, m], scores [h, T, H, m]. Which picks is certain, ties go to the
        smaller place of the grid. A CPU has them from the best down, a GPU in the order of their places.

    Raises:
        ArgumentError: Names the argument, and what was expected.
    """
    arguments.need_dtype("sides_TH2rc", sides_TH2rc, (torch.float32, torch.float64))
    arguments.need_shape("sides_TH2rc", sides_TH2rc, ("T", "H", 2, "r", "c"))
    tokens, heads, _, components, candidates = sides_TH2rc.shape
    arguments.need_dtype("index_TH2c", index_TH2c, (torch.int64,))
    arguments.need_shape("index_TH2c", index_TH2c, (tokens, heads, 2, candidates))
    arguments.need_dtype("cores_Hhrr", cores_Hhrr, (sides_TH2rc.dtype,))
    arguments.need_shape("cores_Hhrr", cores_Hhrr, (heads, "h", components, components))
    tensors = {"sides_TH2rc": sides_TH2rc, "index_TH2c": index_TH2c, "cores_Hhrr": cores_Hhrr}
    if addresses.offsets_RS is not None:
        arguments.need_dtype("addresses.offsets_RS", addresses.offsets_RS, (torch.int32,))
        arguments.need_shape("addresses.offsets_RS", addresses.offsets_RS, ("R", addresses.side))
        tensors["addresses.offsets_RS"] = addresses.offsets_RS
    arguments.need_same_device(tensors)
    arguments.need_in_range("index_TH2c", index_TH2c, addresses.side)
    if not 1 <= m <= candidates**2:
        raise arguments.ArgumentError(f"m is {m}; expected 1 to {candidates**2}, the places of the grid")
    if addresses.num_rows > MOST_ROWS:
        raise arguments.ArgumentError(
            f"addresses.num_rows is {addresses.num_rows}; expected up to {MOST_ROWS}, as int32"
        )
    where = (addresses.offsets_RS, addresses.side, addresses.num_rows, addresses.one_block)
    scores_hTHm, picked_THm, blocks_THm, _ = _best_slots(sides_TH2rc, index_TH2c, cores_Hhrr, m, *where)
    return picked_THm, blocks_THm, scores_hTHm


@torch.library.custom_op("ultramem::best_slots", mutates_args=(), device_types="cpu")
def _best_slots(
    sides_TH2rc: Tensor,
    index_TH2c: Tensor,
    cores_Hhrr: Tensor,
    m: int,
    offsets_RS: Tensor | None,
    side: int,
    num_rows: int,
    one_block: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scores, rows, blocks, and the places of the grid as int32, for the backward pass."""
    addresses = Addresses(side, num_rows, offsets_RS, one_block)
    return torch_path.best_slots(sides_TH2rc, index_TH2c, cores_Hhrr, m, addresses)


@_best_slots.register_kernel("cuda")
def _(
    sides_TH2rc: Tensor,
    index_TH2c: Tensor,
    cores_Hhrr: Tensor,
    m: int,
    offsets_RS: Tensor | None,
    side: int,
    num_rows: int,
    one_block: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    addresses = Addresses(side, num_rows, offsets_RS, one_block)
    return triton_kernels("grid_top_m").best_slots(sides_TH2rc, index_TH2c, cores_Hhrr, m, addresses)


@_best_slots.register_fake
def _(
    sides_TH2rc: Tensor,
    index_TH2c: Tensor,
    cores_Hhrr: Tensor,
    m: int,
    offsets_RS: Tensor | None,
    side: int,
    num_rows: int,
    one_block: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    shape = (*sides_TH2rc.shape[:2], m)
    return (
        sides_TH2rc.new_empty((cores_Hhrr.shape[1], *shape)),
        sides_TH2rc.new_empty(shape, dtype=torch.int32),
        sides_TH2rc.new_empty(shape, dtype=torch.uint8),
        sides_TH2rc.new_empty(shape, dtype=torch.int32),
    )


def _keep(ctx, inputs, output) -> None:
    sides_TH2rc, _, cores_Hhrr, *_ = inputs
    ctx.save_for_backward(sides_TH2rc, cores_Hhrr, output[3])


def _backward(ctx, grad_hTHm, _rows, _blocks, _places):
    sides_grad, cores_grad = _best_slots_backward(grad_hTHm.contiguous(), *ctx.saved_tensors)
    return sides_grad, None, cores_grad, None, None, None, None, None


_best_slots.register_autograd(_backward, setup_context=_keep)


@torch.library.custom_op("ultramem::best_slots_backward", mutates_args=(), device_types="cpu")
def _best_slots_backward(
    grad_hTHm: Tensor, sides_TH2rc: Tensor, cores_Hhrr: Tensor, places_THm: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients of sides and cores."""
    return torch_path.best_slots_backward(grad_hTHm, sides_TH2rc, cores_Hhrr, places_THm)


@_best_slots_backward.register_kernel("cuda")
def _(grad_hTHm: Tensor, sides_TH2rc: Tensor, cores_Hhrr: Tensor, places_THm: Tensor) -> tuple[Tensor, Tensor]:
    return triton_kernels("grid_top_m").best_slots_backward(grad_hTHm, sides_TH2rc, cores_Hhrr, places_THm)


@_best_slots_backward.register_fake
def _(grad_hTHm: Tensor, sides_TH2rc: Tensor, cores_Hhrr: Tensor, places_THm: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(sides_TH2rc).contiguous(), torch.empty_like(cores_Hhrr).contiguous()
