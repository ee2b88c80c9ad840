"""Memory layers against the oracle: outputs, picks and the gradient of every parameter; and over tensor parallel."""

# Letters: s positions, b sequences, D hidden width, T tokens, K picks per token, h score cores.

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.testing.distributed import run_distributed
from ultramem_megatron.testing.reference_layer import (
    ReferenceOutput,
    auxiliary_loss,
    reference_memory_layer,
    reference_pkm_layer,
)
from ultramem_megatron.testing.reference_weights import leading_singular_vectors
from ultramem_megatron.testing.tolerances import assert_agrees

if TYPE_CHECKING:
    from ultramem_megatron.memory.layer import MemoryLayer

Layers = Any  # the fixture's class lives in conftest.py
POSITIONS, SEQUENCES = 8, 3
LOSS_SCALE = 0.5
SUMMED_TERMS = 64
"""The longest sums: gradients over tokens and picks, and the projection over E * V."""

ULTRAMEM_CASES = [
    pytest.param({}, id="all-parts"),
    pytest.param({"query_conv_kernel": 0}, id="no-conv"),
    pytest.param({"query_conv_kernel": 1}, id="conv-of-one-tap"),
    pytest.param({"normalize_keys": False}, id="no-norm"),
    pytest.param({"tucker_rank": 1, "cores": 1}, id="rank-1-one-core"),
    pytest.param({"tucker_rank": 3}, id="rank-3"),
    pytest.param({"cores": 1}, id="one-core"),
    pytest.param({"heads": 1, "heads_per_query": 1}, id="one-head"),
    pytest.param({"heads": 2, "heads_per_query": 1}, id="own-queries"),
    pytest.param({"heads": 2, "heads_per_query": 2}, id="one-query"),
    pytest.param({"expansion": 1}, id="no-expansion"),
    pytest.param({"expansion": 9}, id="nine-blocks"),
    pytest.param({"top_m": 7, "expansion": 1}, id="every-key-kept"),
    pytest.param({"top_m": 1}, id="one-slot"),
]


@dataclass(frozen=True)
class Found:
    """What the layer computes, beside what the oracle says of the same weights and input."""

    output: Tensor
    rows: Tensor
    blocks: Tensor
    scores: Tensor
    gradients: dict[str, Tensor]
    reference: ReferenceOutput
    reference_gradients: dict[str, Tensor]


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(7))


def apply_oracle(layers: Layers, config: RunConfig, layer: "MemoryLayer", x: Tensor) -> tuple[ReferenceOutput, Any]:
    """The oracle's output, and the gradients of <output, cotangent> + scale * auxiliary loss by the layer's names."""
    from ultramem_megatron.memory.value_expansion import SlotShuffle

    weights, wide = layers.oracle_weights(layer), x.detach().double().requires_grad_()
    if "core" in weights:
        memory = config.memory
        u, t = leading_singular_vectors(weights["core"])
        shuffle = SlotShuffle(memory.grid_side, memory.num_rows, memory.shuffle_seed)
        found = reference_memory_layer(memory, weights, wide, slot_to_address=shuffle, u=u, t=t)
        penalty = auxiliary_loss(weights["core"], memory.auxiliary_weight, memory.auxiliary_margin)
    else:
        found, penalty = reference_pkm_layer(config.memory, weights, wide), torch.zeros(())
    ((found.output * draw(*x.shape).double()).sum() + LOSS_SCALE * penalty).backward()
    return found, {**{name: weight.grad for name, weight in weights.items()}, "x": wide.grad}


def compare(layers: Layers, config: RunConfig) -> Found:
    layer = layers.build(config, loss_scale=LOSS_SCALE)
    x = torch.randn(POSITIONS, SEQUENCES, config.model.hidden).requires_grad_()
    output = layer(x)
    output.backward(draw(*x.shape))
    with torch.no_grad():
        picks = layer.retrieve(x)
    reference, reference_gradients = apply_oracle(layers, config, layer, x)
    names = layers.oracle_weights(layer)  # in the order of the parameters
    gradients = {
        name: parameter.grad.view(reference_gradients[name].shape)
        for name, parameter in zip(names, layer.parameters(), strict=True)
        if parameter.grad is not None
    }
    return Found(
        output.detach(),
        picks.rows_TK,
        picks.blocks_TK,
        picks.scores_hTK,
        {**gradients, "x": x.grad},
        reference,
        reference_gradients,
    )


def assert_equals_oracle(found: Found) -> None:
    assert found.reference.margin > 1e-5, "a tie: this case would test the rounding, not the layer"
    assert torch.equal(found.rows.long(), found.reference.rows)
    assert torch.equal(found.blocks.long(), found.reference.blocks)
    kwargs = {"computed_in": torch.float32, "summed_terms": SUMMED_TERMS}
    assert_agrees(found.scores, found.reference.scores, **kwargs)
    assert_agrees(found.output, found.reference.output, **kwargs)
    assert found.gradients.keys() == found.reference_gradients.keys()
    for name, gradient in found.gradients.items():
        assert gradient.count_nonzero() > 0, name
        assert_agrees(gradient, found.reference_gradients[name], **kwargs)


@pytest.mark.parametrize("changes", ULTRAMEM_CASES)
def test_ultramem_equals_the_oracle(layers: Layers, changes: dict[str, object]) -> None:
    (found,) = run_distributed(1, compare, layers, layers.config(**changes))
    assert_equals_oracle(found)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="projected"),
        pytest.param({"value_dim": 16}, id="as-wide-as-the-model"),
        pytest.param({"heads": 1, "heads_per_query": 1, "top_m": 1}, id="smallest"),
    ],
)
def test_pkm_equals_the_oracle(layers: Layers, changes: dict[str, object]) -> None:
    config = layers.config(variant="pkm", **changes)
    (found,) = run_distributed(1, compare, layers, config)
    if config.memory.top_m == 1:
        # the softmax of one score is 1 whatever the score: nothing reaches what chose it
        for name in ("query.weight", "keys", "x"):
            assert found.gradients.pop(name).count_nonzero() == 0
            found.reference_gradients.pop(name)
    assert_equals_oracle(found)
    assert ("projection.weight" in found.gradients) is (config.memory.value_dim != config.model.hidden)


# --- Tensor parallel --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shared:
    """What one rank of a tensor-parallel group computes."""

    output: Tensor
    x_gradient: Tensor
    gradients: dict[str, Tensor]


def run_shared(layers: Layers, config: RunConfig, ranks: int, sequence_parallel: bool) -> Shared:
    layer = layers.build(config, sequence_parallel=sequence_parallel, tp_ranks=ranks, loss_scale=LOSS_SCALE / ranks)
    whole, cotangent = draw(POSITIONS, 2, config.model.hidden), draw(POSITIONS, 2, config.model.hidden).flip(0)
    if sequence_parallel:
        whole, cotangent = (part.chunk(ranks)[dist.get_rank()] for part in (whole, cotangent))
    x = whole.clone().requires_grad_()
    output = layer(x)
    output.backward(cotangent)
    assert x.grad is not None
    gradients = {name: parameter.grad for name, parameter in layer.named_parameters()}
    return Shared(output.detach(), x.grad, {n: g for n, g in gradients.items() if g is not None})


@pytest.mark.parametrize("kernel", [0, 1, 2, 5])
@pytest.mark.parametrize("sequence_parallel", [False, True], ids=["whole-sequence", "sequence-parallel"])
def test_tensor_parallel_ranks_share_the_tokens(layers: Layers, sequence_parallel: bool, kernel: int) -> None:
    """With 5 taps each of 2 ranks holds 4 tokens of a sequence, exactly what its neighbour needs."""
    config = layers.config(query_conv_kernel=kernel)
    (alone,) = run_distributed(1, run_shared, layers, config, 1, False)
    shared = run_distributed(2, run_shared, layers, config, 2, sequence_parallel)
    kwargs = {"computed_in": torch.float32, "summed_terms": SUMMED_TERMS}
    if sequence_parallel:
        assert_agrees(torch.cat([one.output for one in shared]), alone.output.double(), **kwargs)
        assert_agrees(torch.cat([one.x_gradient for one in shared]), alone.x_gradient.double(), **kwargs)
    else:
        for one in shared:
            assert_agrees(one.output, alone.output.double(), **kwargs)
            assert_agrees(one.x_gradient, alone.x_gradient.double(), **kwargs)
    for name, gradient in alone.gradients.items():
        total = torch.stack([one.gradients[name] for one in shared]).sum(dim=0)
        assert_agrees(total, gradient.double(), **kwargs)


def test_three_ranks_pass_the_halo_on(layers: Layers) -> None:
    """Three ranks of three tokens: the middle one is a neighbour on both sides."""
    config = layers.config(query_conv_kernel=3)
    whole = draw(9, 1, config.model.hidden)

    def middle(ranks: int) -> Tensor:
        layer = layers.build(config, sequence_parallel=ranks > 1, tp_ranks=ranks)
        with torch.no_grad():
            return layer(whole.chunk(ranks)[dist.get_rank() if ranks > 1 else 0])

    alone = run_distributed(1, middle, 1)[0]
    assert_agrees(
        torch.cat(run_distributed(3, middle, 3)), alone.double(), computed_in=torch.float32, summed_terms=SUMMED_TERMS
    )


# --- What else a layer promises ---------------------------------------------------------------------------------------


def describe(layers: Layers, config: RunConfig) -> dict[str, Any]:
    layer = layers.build(config)
    shown: list[tuple[Any, Tensor]] = []
    layer.observer = lambda picks, out: shown.append((picks, out))
    x = torch.randn(4, 2, config.model.hidden)
    with torch.no_grad():
        output = layer(x)
    return {
        "shown": [(picks.rows_TK.shape, torch.equal(out, output)) for picks, out in shown],
        "allreduce": {n: getattr(p, "allreduce", True) for n, p in layer.named_parameters()},
        "summed over tp": {n: getattr(p, "sequence_parallel", False) for n, p in layer.named_parameters()},
        "penalty": None if layer.penalty() is None else layer.penalty().item(),
        "core": None if layer.summed_core is None else tuple(layer.summed_core.shape),
        "buffers": sorted(set(layer.state_dict()) - {n for n, _ in layer.named_parameters()}),
        "dtypes": {p.dtype for p in layer.parameters()},
        "output": (output.dtype, tuple(output.shape)),
    }


@pytest.mark.parametrize("variant", ["ultramem", "pkm"])
def test_parameters_say_who_sums_their_gradients(layers: Layers, variant: str) -> None:
    (found,) = run_distributed(1, describe, layers, layers.config(variant=variant))
    tables = {name for name, allreduce in found["allreduce"].items() if not allreduce}
    assert tables == {"table.weight"}
    assert {name for name, summed in found["summed over tp"].items() if not summed} == tables
    assert found["shown"] == [((8, 12), True)], "the observer sees each forward pass once"


def test_variants_differ_in_core_penalty_and_state(layers: Layers) -> None:
    (ultramem,) = run_distributed(1, describe, layers, layers.config())
    assert ultramem["penalty"] > 0 and ultramem["core"] == (4, 2, 2)
    assert ultramem["buffers"] == ["retrieval.core.left", "retrieval.core.right"], "the shuffle follows from its seed"
    (pkm,) = run_distributed(1, describe, layers, layers.config(variant="pkm"))
    assert pkm["penalty"] is None and pkm["core"] is None and pkm["buffers"] == []
    (off,) = run_distributed(1, describe, layers, layers.config(auxiliary_weight=0))
    assert off["penalty"] is None


def test_a_bf16_layer_computes_in_its_type(layers: Layers) -> None:
    import dataclasses

    from ultramem_megatron.config.training import Precision

    config = layers.config()
    config = dataclasses.replace(config, training=dataclasses.replace(config.training, precision=Precision.BF16))

    def run() -> tuple[Tensor, Tensor]:
        layer = layers.build(config)
        x = torch.randn(4, 2, config.model.hidden, dtype=torch.bfloat16, requires_grad=True)
        output = layer(x)
        output.sum().backward()
        assert {p.dtype for p in layer.parameters()} == {torch.bfloat16}
        assert all(p.grad is not None and p.grad.dtype is torch.bfloat16 for p in layer.parameters())
        assert x.grad is not None
        return output.detach(), x.grad

    ((output, gradient),) = run_distributed(1, run)
    assert output.dtype is gradient.dtype is torch.bfloat16
    assert output.isfinite().all() and gradient.isfinite().all() and output.count_nonzero() > 0


# --- Initial size -----------------------------------------------------------------------------------------------------


def initial_ratio(layers: Layers, config: RunConfig) -> tuple[float, float]:
    layer = layers.build(config)
    x = torch.randn(32, 4, config.model.hidden)
    with torch.no_grad():
        scores = layer.retrieve(x).scores_hTK
        return float(layer(x).std()) / (2 * config.model.layers) ** -0.5, float(scores.mean())


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="16-of-128"),
        pytest.param({"keys_per_side": 512, "top_m": 8}, id="8-of-1024"),
        pytest.param({"normalize_keys": False}, id="no-norm"),
        pytest.param({"tucker_rank": 3, "cores": 3}, id="rank-3"),
        pytest.param({"tucker_rank": 1, "cores": 1}, id="rank-1"),
    ],
)
def test_initial_output_has_the_variance_of_a_branch(layers: Layers, changes: dict[str, object]) -> None:
    """sqrt(1 / (2 L)) on standard normal input, and mean score 1 (paper, section 4). Measured with hidden 128, 12
    layers and 2 heads: ratios 0.99 to 1.06, mean scores 0.95 to 0.99, for 16 of 256 and of 2048, 4 of 64, ranks 1, 2
    and 3, 1, 2 and 4 cores, with and without norm (CPU, 2026-11)."""
    sizes = {"keys_per_side": 64, "top_m": 16, "key_dim": 96} | changes
    ((ratio, mean_score),) = run_distributed(1, initial_ratio, layers, layers.config(**sizes))
    assert 0.75 < ratio < 1.33
    assert 0.75 < mean_score < 1.33
