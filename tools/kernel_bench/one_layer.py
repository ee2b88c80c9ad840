"""The memory layer of one checkout of this repository, a pass at a time: what ``--against-checkout`` starts.

    python one_layer.py CHECKOUT SETTINGS

``SETTINGS`` is JSON: ``sections`` of a config, ``tokens``, ``hidden``, ``threads``. Each line of standard input asks
for a pass; each line of standard output answers, as JSON: seconds of forward and backward, and sizes of output and
input gradient, which tell whether two checkouts compute the same. Only what every checkout has is used.
"""

import contextlib
import json
import sys
import tempfile
import time
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(slots=True)
class Draws:
    """Numbers for one parameter."""

    shape: tuple[int, ...]
    generator: torch.Generator

    def normal(self) -> Tensor:
        """Standard normal."""
        return torch.randn(self.shape, generator=self.generator)

    def uniform(self) -> Tensor:
        """In [0, 1)."""
        return torch.rand(self.shape, generator=self.generator)


def main() -> None:
    """Build the layer, then answer until the input ends."""
    checkout, settings = sys.argv[1], json.loads(sys.argv[2])
    sys.path[:0] = [f"{checkout}/{folder}" for folder in ("", "kernels", "launch")]
    answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no answer
    with tempfile.TemporaryDirectory(prefix="ultramem-") as folder:
        from ultramem_megatron.parallel.process import ProcessPlace, start_process

        start_process(
            ProcessPlace(rank=0, world_size=1, local_rank=0, local_world_size=1, rendezvous=f"file://{folder}/store")
        )
        torch.set_num_threads(settings["threads"])  # now, for a process shares the cores out as it starts
        layer = build(settings["sections"])
        shape = (settings["tokens"], 1, settings["hidden"])
        x_sbD = torch.randn(shape, generator=torch.Generator().manual_seed(1)).requires_grad_()
        cotangent_sbD = torch.randn(shape, generator=torch.Generator().manual_seed(2))
        for _ in sys.stdin:
            print(json.dumps(pass_through(layer, x_sbD, cotangent_sbD)), file=answers, flush=True)
        dist.destroy_process_group()


def build(sections: dict[str, Any]) -> torch.nn.Module:
    """The layer with an unsplit table, weights drawn by its rules in the order of their names, and a main_grad."""
    from ultramem_megatron.config.load import resolve
    from ultramem_megatron.memory.layer import LayerPlace
    from ultramem_megatron.memory.token_share import TokenShare
    from ultramem_megatron.memory.variants import ultramem
    from ultramem_megatron.parallel.channel import Channel
    from ultramem_megatron.parallel.partition.base import TableShape
    from ultramem_megatron.parallel.partition.replicated import Replicated

    config, alone = resolve([("one_layer", sections)]), dist.group.WORLD
    assert alone is not None
    place = LayerPlace(
        share=TokenShare(alone, False),
        device=torch.device("cpu"),
        dp_cp=alone,
        mem_dp=alone,
        dtype=torch.float32,
        loss_scale=1.0,
    )
    memory = config.memory
    shape = TableShape(
        num_rows=memory.num_rows, value_dim=memory.value_dim, blocks=memory.expansion, cores=memory.cores
    )
    layer = ultramem.build(config, place, Replicated(shape, Channel(alone)))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in sorted(layer.named_parameters()):
            parameter.copy_(layer.rules[name](Draws(tuple(parameter.shape), generator)))
    layer.begin_step()
    layer.table.weight.main_grad = torch.zeros(layer.table.weight.shape)  # type: ignore[attr-defined]
    return layer


def pass_through(layer: torch.nn.Module, x_sbD: Tensor, cotangent_sbD: Tensor) -> dict[str, float]:
    """One forward and backward pass."""
    layer.zero_grad()
    x_sbD.grad = None
    begin = time.perf_counter()
    output_sbD = layer(x_sbD)
    middle = time.perf_counter()
    output_sbD.backward(cotangent_sbD)
    end = time.perf_counter()
    assert x_sbD.grad is not None
    sizes = {"output": float(output_sbD.norm()), "x_grad": float(x_sbD.grad.norm())}
    return {"forward": middle - begin, "backward": end - middle} | sizes


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
