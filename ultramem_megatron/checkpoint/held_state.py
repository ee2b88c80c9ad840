"""Is what goes into a checkpoint what the optimizer holds?

megatron-core gathers, joins and cuts its state to describe it. What is lost on the way would be written, hashed and
verified like anything else, and missed at the next start.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from torch import Tensor

STATES = ("param", "exp_avg", "exp_avg_sq")
"""Of every parameter, as megatron-core names them: fp32 master weights and moments."""


def missing_states(parts: Sequence[DistributedOptimizer]) -> list[str]:
    """What this rank's optimizer should hold, and does not. No communication.

    To be asked before the state is described: megatron-core would fail on this rank alone, and the others wait.
    """
    return [reason for part in parts for parameter in _own(part) for reason in _missing(part, parameter)]


def _own(part: DistributedOptimizer) -> Iterator[Any]:
    """Parameters of the model of which this rank holds the state of a part."""
    return iter(part.model_param_group_index_map)


def _missing(part: DistributedOptimizer, parameter: Any) -> Iterator[str]:
    held, elements = _held(part, parameter), part._get_model_param_range_map(parameter)["param"].size
    for name in STATES:
        found = held[name].numel() if name in held else 0
        if found != elements:
            yield f"the optimizer holds {name} of {found} elements for a part of {elements} of a parameter"


def _held(part: DistributedOptimizer, parameter: Any) -> dict[str, Tensor]:
    group, order = part.model_param_group_index_map[parameter]
    master = part.optimizer.param_groups[group]["params"][order]
    return {"param": master.detach(), **part.optimizer.state.get(master, {})}


def altered_states(parts: Sequence[DistributedOptimizer], described: Sequence[dict[str, Any]]) -> list[str]:
    """What is described of this rank's part of the optimizer, and is not what it holds. No communication.

    Args:
        parts: Of the optimizer.
        described: By megatron-core, ``fully_reshardable``, of each; copies in host memory. None of an empty part.
    """
    return [
        reason
        for part, state in zip(parts, described, strict=True)
        for reason in _altered(part, state.get("param_state") or {})
    ]


def _altered(part: DistributedOptimizer, described: dict[int, dict[str, Any]]) -> Iterator[str]:
    own = set(_own(part))
    parameters = [parameter for buffer in part.buffers for parameter in buffer.param_index_map]
    for index, parameter in enumerate(parameters):
        if parameter not in own:
            continue
        held, place = _held(part, parameter), part._get_model_param_range_map(parameter)["param"]
        for name in STATES:
            tensor = described.get(index, {}).get(name)
            if tensor is None:
                yield f"{name} of parameter {index} of {len(parameters)} is missing"
            elif not _same(tensor.data.reshape(-1)[place.start : place.end], held[name]):
                yield f"{tensor.key} is not what the optimizer holds"


def _same(described: Tensor, held: Tensor) -> bool:
    """Bit by bit: NaN equals itself."""
    return torch.equal(described.view(torch.int32), held.to("cpu", torch.float32).view(torch.int32))
