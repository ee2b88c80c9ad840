"""Where a memory layer reads and where its result is added, in a real model."""

from typing import Any

import pytest
import torch
from torch import Tensor

from ultramem_megatron.testing.distributed import run_distributed
from ultramem_megatron.testing.tolerances import assert_agrees

BLOCKS = 4


def trace(models: Any, config: Any) -> dict[str, Any]:
    """One forward pass with the memory layer, one with its projection at zero; what went where."""
    (chunk,) = models.build(config)
    (layer,) = chunk.memory_layers
    layer.begin_step()
    seen: dict[str, Tensor] = {}

    def keep_input(name: str) -> Any:
        return lambda module, inputs, output: seen.__setitem__(name, inputs[0].detach().clone())

    def keep_output(name: str) -> Any:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            seen[name] = (output[0] if isinstance(output, tuple) else output).detach().clone()

        return hook

    look_up = layer.look_up

    async def watched(x: Tensor) -> Tensor:
        seen["read"] = x.detach().clone()
        output = await look_up(x)
        seen["memory"] = output.detach().clone()
        return output  # type: ignore[no-any-return]

    layer.look_up = watched
    for number, block in enumerate(chunk.decoder.layers, start=1):
        block.mlp.register_forward_hook(keep_input(f"mlp {number}"))
        block.register_forward_hook(keep_output(f"block {number}"))
    tokens = torch.arange(2 * config.model.seq_length).view(2, -1) % config.model.vocab_size
    positions = torch.arange(config.model.seq_length).expand(2, -1)
    with torch.no_grad():
        chunk(tokens, positions, None, labels=tokens)
        with_memory = dict(seen)
        layer.projection.weight.zero_()
        chunk(tokens, positions, None, labels=tokens)
    return {"with": with_memory, "without": seen}


@pytest.mark.parametrize("overrides", [(), ("model.experts=4", "model.expert_ffn_hidden=24")], ids=["mlp", "experts"])
def test_a_span_reads_the_normed_mlp_input_and_adds_to_its_last_block(models: Any, overrides: tuple[str, ...]) -> None:
    (found,) = run_distributed(1, trace, models, models.config("memory.spans=2:3", *overrides))
    with_memory, without = found["with"], found["without"]
    assert torch.equal(with_memory["read"], with_memory["mlp 2"])
    assert with_memory["memory"].count_nonzero() > 0
    for number in (1, 2):
        assert torch.equal(with_memory[f"block {number}"], without[f"block {number}"])
    assert_agrees(
        with_memory["block 3"], (without["block 3"].double() + with_memory["memory"]), computed_in=torch.float32
    )
    assert not torch.equal(with_memory["block 4"], without["block 4"])


def test_a_span_within_one_block(models: Any) -> None:
    (found,) = run_distributed(1, trace, models, models.config("memory.spans=4:4"))
    with_memory, without = found["with"], found["without"]
    assert torch.equal(with_memory["read"], with_memory["mlp 4"])
    assert torch.equal(with_memory["block 3"], without["block 3"])
    assert_agrees(
        with_memory["block 4"], (without["block 4"].double() + with_memory["memory"]), computed_in=torch.float32
    )
