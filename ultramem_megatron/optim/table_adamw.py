"""AdamW for value tables: only the rows with gradients, or moments in bf16. README.md of this folder says when."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer
from torch.optim.adamw import adamw

# Letters: R rows of a shard that this rank updates, v their width; B rows of a block, U touched rows of one.

BLOCK_ELEMENTS = 2**21
"""Updated at a time, which bounds what a step allocates: some eight tensors of 8 MiB, whatever the table's size."""

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, slots=True)
class RowPlace:
    """How rows lie in a flat range of a shard: megatron-core splits a shard over its copies wherever it ends up."""

    width: int
    """Of a row of the shard [v]."""
    head: int
    """Elements before the first row that begins in the range."""

    @classmethod
    def of_range(cls, width: int, start: int) -> "RowPlace":
        """Of a range that begins at element ``start`` of the shard."""
        return cls(width, -start % width)

    def pieces(self, flat: Tensor) -> tuple[Tensor, ...]:
        """Views of the range: the end of a row, whole rows [R, v], the beginning of a row; each [rows, columns]."""
        head = min(self.head, flat.numel())
        whole = (flat.numel() - head) // self.width * self.width
        parts = flat.split([head, whole, flat.numel() - head - whole])
        return parts[0].view(1, -1), parts[1].view(-1, self.width), parts[2].view(1, -1)


@dataclass(frozen=True, slots=True)
class _Rows:
    """The same rows of weights, gradients and both moments."""

    weights: Tensor
    gradients: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor


class TableAdamW(AdamW):
    """``torch.optim.AdamW`` on master weights, block by block.

    Lazy: an element whose gradient is exactly zero keeps its weight and its moments. Rows that no token of the global
    batch picked are such rows, and nothing but their gradient is read. By element, since megatron-core cuts shards
    inside of rows and a dimension-wise table has a part of each row on every rank: so every layout does the same.
    """

    def __init__(
        self,
        inner: Optimizer,
        places: Mapping[Tensor, RowPlace],
        *,
        lazy: bool,
        moment_types: tuple[torch.dtype, torch.dtype],
        step_in_group: bool,
    ) -> None:
        """Take the place of ``inner``, an Adam that has not stepped yet.

        Args:
            inner: Whose parameter groups are taken over.
            places: Of every parameter: a flat fp32 range of a shard.
            lazy: Whether untouched elements stay as they are.
            moment_types: Of the first and the second moment: fp32 or bf16.
            step_in_group: Keep the number of steps in the parameter group, as Transformer Engine's and apex's Adam do
                and megatron-core expects where they are installed, and not with each parameter, as torch's.
        """
        super().__init__([torch.zeros(0)])
        # not by add_param_group, which refuses views of a parameter, as fp32 master weights are
        self.param_groups = inner.param_groups
        self.places, self.lazy, self.step_in_group = places, lazy, step_in_group
        self.moment_types = dict(zip(MOMENTS, moment_types, strict=True))

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        assert closure is None, "megatron-core gives none"
        for group in self.param_groups:
            if self.step_in_group:
                group["step"] = group.get("step", 0) + 1
            for parameter in group["params"]:
                if parameter.grad is not None and parameter.numel():
                    self._update(parameter, parameter.grad, group)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, which gives moments the type of the parameter; here they have their own."""
        super().load_state_dict(state_dict)
        for state in self.state.values():
            for name in MOMENTS:
                if name in state:
                    state[name] = state[name].to(self.moment_types[name])

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        for name, dtype in self.moment_types.items():
            if name not in state:
                state[name] = torch.zeros_like(parameter, dtype=dtype, requires_grad=False)
        steps_before = self._count_step(parameter, group)
        flat = (parameter.detach(), gradient, state["exp_avg"], state["exp_avg_sq"])
        update = lazy_step if self.lazy else dense_step
        pieces = (self.places[parameter].pieces(tensor) for tensor in flat)
        for rows in map(_Rows, *pieces):
            update(rows, group, steps_before)

    def _count_step(self, parameter: Tensor, group: dict[str, Any]) -> Tensor:
        """The number of steps before this one, which is counted."""
        if self.step_in_group:
            return torch.tensor(float(group["step"] - 1), device=parameter.device)
        state = self.state[parameter]
        before = state.get("step", torch.zeros((), device=parameter.device)).to(parameter.device)
        state["step"] = before + 1
        return before


def adam_step(rows: _Rows, group: dict[str, Any], steps_before: Tensor) -> None:
    """One step of torch's own AdamW on fp32 rows, in place, without temporaries."""
    beta1, beta2 = group["betas"]
    adamw(
        [rows.weights],
        [rows.gradients],
        [rows.exp_avg],
        [rows.exp_avg_sq],
        [],
        [steps_before.clone()],  # is counted up
        fused=True,
        amsgrad=False,
        beta1=beta1,
        beta2=beta2,
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=False,
    )


def dense_step(rows: _Rows, group: dict[str, Any], steps_before: Tensor) -> None:
    """One step of all rows, block by block; moments are fp32 for as long as it takes."""
    size = _block_rows(rows)
    for start in range(0, rows.weights.shape[0], size):
        part = slice(start, start + size)
        kept = (rows.exp_avg[part], rows.exp_avg_sq[part])
        moments = tuple(moment.float() for moment in kept)
        adam_step(_Rows(rows.weights[part], rows.gradients[part], *moments), group, steps_before)
        for target, updated in zip(kept, moments, strict=True):
            if target is not updated:
                target.copy_(updated)


def lazy_step(rows: _Rows, group: dict[str, Any], steps_before: Tensor) -> None:
    """One step of the elements with a gradient: their rows are copied out, block by block, and put back."""
    touched, whole = touched_rows(rows.gradients)
    targets = (rows.weights, rows.exp_avg, rows.exp_avg_sq)
    for places_U in touched.split(_block_rows(rows)):
        gradients_Uv = rows.gradients[places_U]
        weights_Uv, *moments_Uv = (target[places_U].float() for target in targets)
        adam_step(_Rows(weights_Uv, gradients_Uv, *moments_Uv), group, steps_before)
        for target, updated_Uv in zip(targets, (weights_Uv, *moments_Uv), strict=True):
            updated_Uv = updated_Uv.to(target.dtype)
            if not whole:
                updated_Uv = torch.where(gradients_Uv != 0, updated_Uv, target[places_U])
            target.index_copy_(0, places_U, updated_Uv)


def touched_rows(gradients_Rv: Tensor) -> tuple[Tensor, bool]:
    """int64, ascending, the rows that are not all zero; and whether all of their elements are touched, as is usual.

    Here a table's step waits for the device.
    """
    some_R, all_R = torch.empty(2, gradients_Rv.shape[0], dtype=torch.bool, device=gradients_Rv.device)
    size = max(1, BLOCK_ELEMENTS // max(1, gradients_Rv.shape[1]))
    for start in range(0, gradients_Rv.shape[0], size):
        part = slice(start, start + size)
        touched_Bv = gradients_Rv[part] != 0
        torch.any(touched_Bv, dim=1, out=some_R[part])
        torch.all(touched_Bv, dim=1, out=all_R[part])
    return some_R.nonzero().squeeze(1), torch.equal(some_R, all_R)


def _block_rows(rows: _Rows) -> int:
    return max(1, BLOCK_ELEMENTS // max(1, rows.weights.shape[1]))
