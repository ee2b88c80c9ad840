"""``update_table`` on CPUs: torch's fused AdamW, part by part, so that what follows it finds the part in the cache."""

import torch
from torch import Tensor

from ultramem_kernels.table_update.settings import AdamW

# Letters: P elements of a part, L lines of one, U touched lines, l elements of a line.

PART_ELEMENTS = 2**18
"""Elements at a time: the five tensors of a part are 5 MiB in fp32, and what a step allocates is no more."""
LINE = 64
"""Elements looked at together for whether one is touched; lines that are not are neither read nor written."""


def update(
    weight: Tensor | None,
    master: Tensor,
    mean: Tensor,
    square: Tensor,
    grad: Tensor,
    step: int,
    settings: AdamW,
    *,
    touched_only: bool,
    clear_grad: bool,
) -> None:
    """Arguments as in ``op.update_table``, flat; no weight where it is the master."""
    tensors = [master, mean, square, grad] if weight is None else [master, mean, square, grad, weight]
    in_one_go = len(tensors) == 4 and mean.dtype is square.dtype is torch.float32 and not (touched_only or clear_grad)
    size = max(1, master.numel()) if in_one_go else PART_ELEMENTS
    for start in range(0, master.numel(), size):
        of_part = [tensor[start : start + size] for tensor in tensors]
        if touched_only:
            whole = of_part[0].numel() // LINE * LINE
            _update_touched([x_P[:whole].view(-1, LINE) for x_P in of_part], step, settings)
            _update_touched([x_P[whole:].unsqueeze(0) for x_P in of_part], step, settings)
        else:
            _update_all(of_part, step, settings)
        if clear_grad:
            of_part[3].zero_()


def _update_all(tensors_P: list[Tensor], step: int, settings: AdamW) -> None:
    master, mean, square, grad, *weight = tensors_P
    moments = (mean.float(), square.float())  # themselves, if they are fp32
    _adamw(master, *moments, grad, step, settings)
    for kept, updated in zip((mean, square), moments, strict=True):
        if kept is not updated:
            kept.copy_(updated)
    for copy in weight:
        copy.copy_(master)


def _update_touched(tensors_Ll: list[Tensor], step: int, settings: AdamW) -> None:
    """Lines with a gradient are copied out and put back; where they are most of all, it is the others."""
    grad_Ll = tensors_Ll[3]
    if not grad_Ll.numel():
        return
    size_Ll = grad_Ll.abs()
    touched_U = size_Ll.amax(dim=1).nonzero().squeeze(1)
    if 2 * len(touched_U) <= len(grad_Ll):
        if len(touched_U):
            _update_lines(tensors_Ll, touched_U, step, settings)
        return
    # what is not a number is a gradient too, and must not hide a zero beside it
    with_rest_U = (size_Ll.nan_to_num_(1.0).amin(dim=1) == 0).nonzero().squeeze(1)
    kept_Ul = [tensor_Ll.index_select(0, with_rest_U) for tensor_Ll in tensors_Ll[:3]]
    _update_all(tensors_Ll, step, settings)
    if len(with_rest_U):
        _put_back(tensors_Ll, with_rest_U, kept_Ul, untouched=True)


def _update_lines(tensors_Ll: list[Tensor], places_U: Tensor, step: int, settings: AdamW) -> None:
    master_Ul, mean_Ul, square_Ul, grad_Ul = (x_Ll.index_select(0, places_U) for x_Ll in tensors_Ll[:4])
    new_Ul = [master_Ul, mean_Ul.float(), square_Ul.float()]
    _adamw(new_Ul[0], new_Ul[1], new_Ul[2], grad_Ul, step, settings)
    _put_back(tensors_Ll, places_U, new_Ul, untouched=False)


def _put_back(tensors_Ll: list[Tensor], places_U: Tensor, lines_Ul: list[Tensor], *, untouched: bool) -> None:
    """Into master, moments and the weight the (un)touched elements of these lines."""
    wanted_Ul = (tensors_Ll[3].index_select(0, places_U) == 0) == untouched
    everything = bool(wanted_Ul.all())
    for tensor_Ll, new_Ul in zip(tensors_Ll[:3], lines_Ul, strict=True):
        new_Ul = new_Ul.to(tensor_Ll.dtype)
        if not everything:
            new_Ul = torch.where(wanted_Ul, new_Ul, tensor_Ll.index_select(0, places_U))
        tensor_Ll.index_copy_(0, places_U, new_Ul)
    for weight_Ll in tensors_Ll[4:]:
        weight_Ll.index_copy_(0, places_U, tensors_Ll[0].index_select(0, places_U).to(weight_Ll.dtype))


def _adamw(master: Tensor, mean: Tensor, square: Tensor, grad: Tensor, step: int, settings: AdamW) -> None:
    """One step of torch's own kernel on fp32, in place, without temporaries."""
    torch._fused_adamw_(
        [master],
        [grad],
        [mean],
        [square],
        [],
        [torch.tensor(float(step))],
        lr=settings.learning_rate,
        beta1=settings.beta1,
        beta2=settings.beta2,
        weight_decay=settings.weight_decay,
        eps=settings.epsilon,
        amsgrad=False,
        maximize=False,
    )
