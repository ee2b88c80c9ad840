"""State of an optimizer that comes from a checkpoint, and settings that do not."""

from collections.abc import Mapping
from typing import Any

import torch
from megatron.core.optimizer import ChainedOptimizer

from ultramem_megatron.optim.table_adamw import MOMENTS, TableAdamW

_STATE = ("params", "step")
"""What a parameter group holds that is no setting. The step is there where Transformer Engine or apex is."""


def load_state(optimizer: ChainedOptimizer, state: Any) -> None:
    """Take over master weights, moments and the number of steps; nothing else of what a checkpoint holds.

    It also holds the parameter groups of who wrote it, with rates, betas and epsilon, and which kernel was used.
    megatron-core puts them in place of those that the config asks for.

    Args:
        optimizer: Of this run.
        state: What ``sharded_state_dict`` of another gave, loaded.
    """
    settings = [{name: value for name, value in g.items() if name not in _STATE} for g in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, own in zip(optimizer.param_groups, settings, strict=True):
        for name in group.keys() - own.keys() - set(_STATE):
            del group[name]
        group.update(own)


def rounded_moments(optimizer: ChainedOptimizer, stored: Mapping[str, Any]) -> set[str]:
    """Moments of value tables that are kept in fewer bits than they were saved with: what was loaded was rounded.

    Args:
        optimizer: Of this run.
        stored: The section ``optimizer`` of the config with which they were saved.
    """
    tables = (part.optimizer for part in optimizer.chained_optimizers if isinstance(part.optimizer, TableAdamW))
    types = {name: dtype for table in tables for name, dtype in table.moment_types.items()}
    return {
        name
        for name in MOMENTS
        if types.get(name) is torch.bfloat16 and stored.get(f"table_{name}_dtype", "fp32") == "fp32"
    }
