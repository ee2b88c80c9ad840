"""Every shipped recipe, built: modules on the meta device have the parameters that ``ultramem info`` counts."""

import dataclasses
from collections import Counter
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from ultramem_launch.configs import load_config, recipe_names
from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.planning.cluster import ClusterSpec
from ultramem_megatron.planning.model_size import ParameterCounts, count_parameters
from ultramem_megatron.testing.distributed import run_distributed

BOUNDLESS = ClusterSpec(name="one process", nodes=1, gpus_per_node=1, memory_bytes=2**62)


class OnMeta(TorchFunctionMode):
    """Tensors that would be allocated get a shape and no memory, wherever the code puts them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.empty, torch.zeros, torch.ones):
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def count_built(config: RunConfig) -> dict[str, int]:
    """Parameters of the whole model by the names of ``ParameterCounts``."""
    from ultramem_megatron.model.build import build_chunk
    from ultramem_megatron.model.transformer_config import transformer_config
    from ultramem_megatron.planning.choose import choose_plan
    from ultramem_megatron.training.setup import build_run_groups

    plan = choose_plan(config, BOUNDLESS)
    groups = build_run_groups(config, plan, torch.device("cpu"))
    with OnMeta():
        on_meta = dataclasses.replace(groups, device=torch.device("meta"))
        chunk = build_chunk(config, plan, on_meta, transformer_config(config), 0)
    assert all(parameter.is_meta for parameter in chunk.parameters())
    counts: Counter[str] = Counter()
    for name, parameter in chunk.named_parameters():
        counts[component(name)] += parameter.numel()
    return dict(counts)


def component(name: str) -> str:
    """What a parameter counts as."""
    if "norm" in name:
        return "norms"
    if name.startswith("memory."):
        return "tables" if name.endswith("table.weight") else "memory_dense"
    if name.startswith(("embedding.", "output_layer.")):
        return "embedding"
    if ".mlp." in name:
        return "experts" if "experts" in name else "router" if "router" in name else "mlp"
    assert "self_attention" in name, name
    return "attention"


def counted(counts: ParameterCounts) -> dict[str, int]:
    names = ("attention", "mlp", "router", "memory_dense", "norms", "experts", "tables", "embedding")
    return {name: getattr(counts, name) for name in names if getattr(counts, name)}


@pytest.mark.parametrize("recipe", recipe_names())
def test_built_modules_have_the_counted_parameters(megatron: ModuleType, recipe: str) -> None:
    config = load_config(recipe, ["parallelism.tensor=1", "parallelism.sequence=false", "memory.parallel_size=auto"])
    (built,) = run_distributed(1, count_built, config)
    assert built == counted(count_parameters(config))
