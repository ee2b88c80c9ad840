"""AdamW for value tables: one pass over gradient, master and moments that writes the weights of the model too."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer

from ultramem_kernels import table_update

MOMENTS = ("exp_avg", "exp_avg_sq")


class TableAdamW(AdamW):
    """``torch.optim.AdamW`` by the kernel ``ultramem_kernels.table_update``.

    Lazy: an element whose gradient is exactly zero keeps its weight and its moments. Rows that no token of the global
    batch picked are such rows, and nothing but their gradient is read. By element, since megatron-core cuts shards
    inside of rows and a dimension-wise table has a part of each row on every rank: so every layout does the same.
    """

    def __init__(
        self,
        inner: Optimizer,
        weights: Mapping[Tensor, Tensor],
        *,
        lazy: bool,
        moment_types: tuple[torch.dtype, torch.dtype],
        step_in_group: bool,
    ) -> None:
        """Take the place of ``inner``, an Adam that has not stepped yet.

        Args:
            inner: Whose parameter groups are taken over: flat fp32 ranges of shards.
            weights: Of every parameter: the same range of the model's weights, bf16 or fp32, which each step writes;
                may be the same memory.
            lazy: Whether untouched elements stay as they are.
            moment_types: Of the first and the second moment: fp32 or bf16.
            step_in_group: Keep the number of steps in the parameter group, as Transformer Engine's and apex's Adam do
                and megatron-core expects where they are installed, and not with each parameter, as torch's.
        """
        super().__init__([torch.zeros(0)])
        # not by add_param_group, which refuses views of a parameter, as fp32 master weights are
        self.param_groups = inner.param_groups
        self.weights, self.lazy, self.step_in_group = weights, lazy, step_in_group
        self.moment_types = dict(zip(MOMENTS, moment_types, strict=True))

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient, which stays as it is: megatron-core clears its buffers."""
        assert closure is None, "megatron-core gives none"
        for group in self.param_groups:
            if self.step_in_group:
                group["step"] = group.get("step", 0) + 1
            for parameter in group["params"]:
                if parameter.grad is not None and parameter.numel():
                    self._update(parameter, parameter.grad, group)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, which gives moments the type of the parameter and puts the number of steps on its device."""
        super().load_state_dict(state_dict)
        for state in self.state.values():
            for name in MOMENTS:
                if name in state:
                    state[name] = state[name].to(self.moment_types[name])
            if "step" in state:
                state["step"] = state["step"].cpu()

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        for name, dtype in self.moment_types.items():
            if name not in state:
                state[name] = torch.zeros_like(parameter, dtype=dtype, requires_grad=False)
        beta1, beta2 = group["betas"]
        table_update.update_table(
            self.weights[parameter],
            parameter.detach(),
            state["exp_avg"],
            state["exp_avg_sq"],
            gradient,
            self._count_step(state, group),
            table_update.AdamW(group["lr"], beta1, beta2, group["eps"], group["weight_decay"]),
            touched_only=self.lazy,
            clear_grad=False,
        )

    def _count_step(self, state: dict[str, Any], group: dict[str, Any]) -> int:
        """The number of this step, from 1; on the host, so that no step waits for the device."""
        if self.step_in_group:
            return int(group["step"])
        state["step"] = state.get("step", torch.zeros(())) + 1
        return int(state["step"])
