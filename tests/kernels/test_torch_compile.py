"""``torch.compile`` of a dense model around the operators, and around a whole memory layer, equals the eager one."""

import pytest
import torch
from torch import Tensor, nn

from ultramem_kernels.pool import pool
from ultramem_kernels.products import multiply_rows
from ultramem_megatron.testing.distributed import run_distributed
from ultramem_megatron.testing.lone_layer import build_lone_layer, draw_weights
from ultramem_megatron.testing.tiny import tiny_config

ONLY_ITS_OWN = {"ultramem_v2": ["memory.pre_value_dim=24", "memory.key_layout=query_per_rank"]}
"""Settings that a variant needs."""

# Letters: N rows of the table, V value dimension, T tokens, K picks, E blocks, h cores.


class DenseBlock(nn.Module):
    """What surrounds a memory layer: norms, an MLP, a residual stream."""

    def __init__(self, hidden: int, memory: nn.Module) -> None:
        super().__init__()
        self.before, self.after = nn.RMSNorm(hidden), nn.RMSNorm(hidden)
        self.mlp = nn.Sequential(nn.Linear(hidden, 2 * hidden), nn.GELU(), nn.Linear(2 * hidden, hidden))
        self.memory = memory

    def forward(self, x_sbD: Tensor) -> Tensor:
        x_sbD = x_sbD + self.mlp(self.before(x_sbD))
        return x_sbD + self.memory(self.after(x_sbD))


@pytest.mark.slow
def test_a_dense_model_around_the_operators_is_one_graph() -> None:
    """Without a break: pre-values, scores, pooling, with what is dense between them."""
    table, wide = torch.randn(7, 16, requires_grad=True), torch.randn(16, 16, requires_grad=True)
    rows, blocks = torch.randint(7, (5, 3), dtype=torch.int32), torch.randint(4, (5, 3), dtype=torch.uint8)
    x = torch.randn(5, 16, requires_grad=True)

    def model(table: Tensor, x: Tensor) -> Tensor:
        products_TK = multiply_rows(table, rows, x @ wide)
        scores_hTK = torch.stack([products_TK.sigmoid(), products_TK * 2])
        return torch.relu(pool(table @ wide, rows, blocks, scores_hTK, 4)).sum()

    results = []
    for run in (model, torch.compile(model, fullgraph=True, backend="aot_eager")):
        loss = run(table, x)
        results.append([loss, *torch.autograd.grad(loss, (table, x, wide))])
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager)


def compare_layer(variant: str) -> None:
    """On a rank of its own."""
    config = tiny_config(f"memory.variant={variant}", *ONLY_ITS_OWN.get(variant, []))
    layer = build_lone_layer(config)
    draw_weights(layer, torch.Generator().manual_seed(0))
    layer.begin_step()
    x_sbD = torch.randn(6, 2, config.model.hidden, requires_grad=True)
    block = DenseBlock(x_sbD.shape[2], layer)
    results = []
    for run in (block, torch.compile(block, backend="aot_eager")):
        out = run(x_sbD)
        results.append([out, *torch.autograd.grad(out.square().sum(), (x_sbD, *block.parameters()))])
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager)


@pytest.mark.slow
@pytest.mark.usefixtures("megatron")
@pytest.mark.parametrize("variant", ["ultramem", "ultramem_v2"])
def test_a_dense_model_around_a_memory_layer(variant: str) -> None:
    """The graph may break where a lookup awaits other ranks; what comes out may not differ."""
    run_distributed(1, compare_layer, variant)
