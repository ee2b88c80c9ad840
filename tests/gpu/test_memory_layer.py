"""A memory layer on the GPU against the same layer on the CPU in fp32."""

# Letters: s positions, b sequences, D hidden width, T tokens, K picks per token.

from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

from ultramem_megatron.config.load import resolve
from ultramem_megatron.testing.lone_layer import build_lone_layer, draw_weights, round_weights
from ultramem_megatron.testing.tolerances import assert_agrees

if TYPE_CHECKING:  # importing a layer imports megatron-core
    from ultramem_megatron.memory.layer import MemoryLayer

pytestmark = pytest.mark.gpu

POSITIONS, SEQUENCES, HIDDEN = 40, 3, 64
SUMMED_TERMS = POSITIONS * SEQUENCES
SECTIONS = {
    "model": {"layers": 4, "hidden": HIDDEN, "ffn_hidden": 64, "heads": 4, "seq_length": POSITIONS, "vocab_size": 64},
    "memory": {"spans": "1:2", "keys_per_side": 32, "top_m": 8, "key_dim": 32, "value_dim": 48},
}
VARIANTS = ["pkm", "ultramem", "ultramem_v2"]
ONLY_ITS_OWN = {"ultramem_v2": {"pre_value_dim": 24, "key_layout": "query_per_rank", "side_top_m": 6}}
"""Fields of the section ``memory`` that a variant needs or shows best."""


def build(variant: str, precision: str, device: torch.device) -> "MemoryLayer":
    """The layer with weights that bf16 can hold, so that both precisions have the same."""
    memory = {"variant": variant, **ONLY_ITS_OWN.get(variant, {})}
    config = resolve([("base", SECTIONS), ("test", {"memory": memory, "training": {"precision": precision}})])
    layer = build_lone_layer(config)
    draw_weights(layer, torch.Generator().manual_seed(0))
    round_weights(layer)
    layer = layer.to(device)
    layer.begin_step()
    return layer


def draw() -> Tensor:
    return torch.randn(POSITIONS, SEQUENCES, HIDDEN).bfloat16().float()


@pytest.mark.parametrize("variant", VARIANTS)
def test_fp32_equals_the_cpu(device: torch.device, variant: str) -> None:
    """Picks, output and the gradient of every parameter and of the input."""
    here, there = build(variant, "fp32", torch.device("cpu")), build(variant, "fp32", device)
    x, cotangent = draw(), draw()
    x_here, x_there = x.clone().requires_grad_(), x.to(device).requires_grad_()
    out_here, out_there = here(x_here), there(x_there)
    with torch.no_grad():
        rows_here, rows_there = (layer.retrieve(x).rows_TK.cpu() for layer, x in ((here, x_here), (there, x_there)))
    # sorted: slots of nearly the same score may change places, which changes no sum
    assert torch.equal(rows_there.sort(dim=1).values, rows_here.sort(dim=1).values)
    assert_agrees(out_there, out_here.detach().double(), computed_in=torch.float32, summed_terms=SUMMED_TERMS)
    out_here.backward(cotangent)
    out_there.backward(cotangent.to(device))
    leaves = [("x", x_here, x_there)]
    leaves += [(n, a, b) for (n, a), b in zip(here.named_parameters(), there.parameters(), strict=True)]
    for name, leaf, moved in leaves:
        assert leaf.grad is not None and moved.grad is not None, name
        assert leaf.grad.count_nonzero() > 0, name
        assert_agrees(moved.grad, leaf.grad.double(), computed_in=torch.float32, summed_terms=SUMMED_TERMS)


@pytest.mark.parametrize("variant", VARIANTS)
def test_bf16_picks_nearly_the_same_slots(device: torch.device, variant: str) -> None:
    """Queries rounded to bf16 may trade slots whose scores are close, but no more."""
    here, there = build(variant, "fp32", torch.device("cpu")), build(variant, "bf16", device)
    x = draw()
    with torch.no_grad():
        rows_here = here.retrieve(x).rows_TK
        rows_there = there.retrieve(x.bfloat16().to(device)).rows_TK.cpu()
    kept = (rows_there.unsqueeze(2) == rows_here.unsqueeze(1)).any(dim=2).float().mean()
    assert kept > 0.95


@pytest.mark.parametrize("variant", VARIANTS)
def test_bf16_lookup_equals_the_cpu_for_the_same_picks(device: torch.device, variant: str) -> None:
    from ultramem_megatron.parallel.partition.base import Picks

    here, there = build(variant, "fp32", torch.device("cpu")), build(variant, "bf16", device)
    with torch.no_grad():
        picks = here.retrieve(draw())
    out_TD = here.projection(here.table(picks))
    scores = picks.scores_hTK.to(device, torch.bfloat16)
    moved = Picks(picks.rows_TK.to(device), picks.blocks_TK.to(device), scores)
    found_TD = there.projection(there.table(moved))
    assert_agrees(found_TD, out_TD.detach().double(), computed_in=torch.bfloat16)
    cotangent_TD = draw().flatten(0, 1)
    out_TD.backward(cotangent_TD)
    found_TD.backward(cotangent_TD.to(device, torch.bfloat16))
    assert here.table.weight.grad is not None and there.table.weight.grad is not None
    assert_agrees(there.table.weight.grad, here.table.weight.grad.double(), computed_in=torch.bfloat16)


def test_bf16_pre_values_equal_the_cpu_for_the_same_picks(device: torch.device) -> None:
    """The products with the input, and their gradients to the second table and to the input."""
    from ultramem_megatron.parallel.partition.base import Picks

    here, there = build("ultramem_v2", "fp32", torch.device("cpu")), build("ultramem_v2", "bf16", device)
    x_TD = draw().flatten(0, 1)
    with torch.no_grad():
        picks = here.retrieve(x_TD.view(POSITIONS, SEQUENCES, HIDDEN))
    x_here, x_there = x_TD.clone().requires_grad_(), x_TD.to(device, torch.bfloat16).requires_grad_()
    moved = Picks(picks.rows_TK.to(device), picks.blocks_TK.to(device), picks.scores_hTK.to(device, torch.bfloat16))
    assert here.pre_values is not None and there.pre_values is not None
    scores_here, scores_there = (
        layer.pre_values(x, found).scores_hTK for layer, x, found in ((here, x_here, picks), (there, x_there, moved))
    )
    assert scores_there.dtype is torch.bfloat16
    assert_agrees(scores_there, scores_here.detach().double(), computed_in=torch.bfloat16)
    cotangent = torch.randn(scores_here.shape).bfloat16().float()
    scores_here.backward(cotangent)
    scores_there.backward(cotangent.to(device, torch.bfloat16))
    for leaf, other in ((here.pre_values.table.weight, there.pre_values.table.weight), (x_here, x_there)):
        assert leaf.grad is not None and other.grad is not None
        assert_agrees(other.grad, leaf.grad.double(), computed_in=torch.bfloat16, summed_terms=SUMMED_TERMS)
