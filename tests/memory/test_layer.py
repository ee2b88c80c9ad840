"""Memory layers against the oracle: outputs, picks and the gradient of every parameter; and over tensor parallel."""

# Letters: s positions, b sequences, D hidden width, T tokens, K picks per token, h score cores.

from collections.abc import Set
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.testing.distributed import run_distributed
from ultramem_megatron.testing.reference_layer import ReferenceOutput, auxiliary_loss
from ultramem_megatron.testing.tolerances import assert_agrees

if TYPE_CHECKING:
    from ultramem_megatron.memory.layer import MemoryLayer

Layers = Any  # the fixture's class lives in conftest.py
HIDDEN = 16  # as in conftest.py
POSITIONS = 8
TOKENS = (6, 2)
"""Positions and sequences beside the oracle, which takes token by token: more positions than the longest filter."""
V2 = {"variant": "ultramem_v2", "pre_value_dim": 6}
LOSS_SCALE = 0.5
MARGIN = 2e-5
"""Between a score that is kept and one that is not; fp32 errs by a tenth of it."""
SUMMED_TERMS = 64
"""The longest sums: gradients over tokens and picks, and the projection over E * V."""

ANY_VARIANT = [
    pytest.param({}, id="all-parts"),
    pytest.param({"query_conv_kernel": 0}, id="no-conv"),
    pytest.param({"query_conv_kernel": 1}, id="conv-of-one-tap"),
    pytest.param({"normalize_keys": False}, id="no-norm"),
    pytest.param({"softmax": True}, id="softmax"),
    pytest.param({"heads": 1, "heads_per_query": 1}, id="one-head"),
    pytest.param({"heads": 2, "heads_per_query": 1}, id="own-queries"),
    pytest.param({"heads": 3, "heads_per_query": 3}, id="one-query"),
    pytest.param({"expansion": 1}, id="no-expansion"),
    pytest.param({"expansion": 9}, id="nine-blocks"),
    pytest.param({"expansion": 1, "value_dim": HIDDEN}, id="as-wide-as-the-model"),
    pytest.param({"top_m": 7, "expansion": 1}, id="every-key-kept"),
    pytest.param({"top_m": 1}, id="one-slot"),
    pytest.param({"side_top_m": 2}, id="fewer-candidates"),
    pytest.param({"side_top_m": 5}, id="more-candidates"),
    pytest.param({"side_top_m": 4, "top_m": 12}, id="more-slots-than-keys"),
    pytest.param({"initialization": "plain"}, id="plain-start"),
    pytest.param({"score_gain": "one_side"}, id="one-side"),
    pytest.param({"shuffle_seed": 5}, id="another-shuffle"),
]
WITH_CORES = [
    pytest.param({"tucker_rank": 1, "cores": 1}, id="rank-1-one-core"),
    pytest.param({"tucker_rank": 3}, id="rank-3"),
    pytest.param({"cores": 1}, id="one-core"),
    pytest.param({"cores": 3, "softmax": True}, id="three-cores-softmax"),
    pytest.param({"key_layout": "full"}, id="full-keys"),
    pytest.param({"key_layout": "full", "tucker_rank": 3, "key_dim": 5}, id="full-keys-rank-3"),
    pytest.param({"key_layout": "query_per_rank"}, id="query-per-rank"),
    pytest.param({"key_layout": "query_per_rank", "tucker_rank": 3, "key_dim": 5}, id="query-per-rank-3"),
    pytest.param({"key_layout": "query_per_rank", "normalize_keys": False}, id="query-per-rank-no-norm"),
]
WITHOUT_CORES = [
    # what a variant without cores has no use for, at values that would break it if it had
    pytest.param({"tucker_rank": 5, "cores": 5, "key_layout": "full"}, id="idle-fields"),
    pytest.param(
        {
            "softmax": True,
            "heads": 2,
            "heads_per_query": 1,
            "normalize_keys": False,
            "expansion": 1,
            "query_conv_kernel": 0,
            "value_dim": HIDDEN,
            "initialization": "plain",
        },
        id="as-published",
    ),
]
WITH_PRE_VALUES = [  # the retrieval is that of the cores above; what follows it is its own
    pytest.param({}, id="all-parts"),
    pytest.param({"expansion": 1}, id="no-expansion"),
    pytest.param({"expansion": 9, "cores": 3, "tucker_rank": 3}, id="nine-blocks-three-cores"),
    pytest.param({"expansion": 1, "value_dim": HIDDEN}, id="as-wide-as-the-model"),
    pytest.param({"query_conv_kernel": 0, "normalize_keys": False}, id="no-conv-no-norm"),
    pytest.param({"softmax": True}, id="softmax"),
    pytest.param({"top_m": 1}, id="one-slot"),
    pytest.param({"side_top_m": 4, "top_m": 12}, id="more-slots-than-keys"),
    pytest.param({"key_layout": "full"}, id="full-keys"),
    pytest.param({"key_layout": "query_per_rank", "tucker_rank": 3, "key_dim": 5}, id="query-per-rank-3"),
    pytest.param({"initialization": "plain"}, id="plain-start"),
    pytest.param({"score_gain": "one_side"}, id="one-side"),
    pytest.param({"pre_value_dim": 1}, id="one-channel"),
    pytest.param({"pre_value_dim": 40}, id="wider-than-the-model"),
    pytest.param(
        {"heads": 1, "heads_per_query": 1, "key_layout": "query_per_rank", "side_top_m": 3}, id="as-published"
    ),
]


@dataclass(frozen=True)
class Found:
    """What the layer computes, beside what the oracle says of the same weights and input."""

    output: Tensor
    rows: Tensor
    blocks: Tensor
    scores: Tensor
    gradients: dict[str, Tensor | None]
    reference: ReferenceOutput
    reference_gradients: dict[str, Tensor | None]


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(7))


def oracle_gradients(
    config: RunConfig, reference: ReferenceOutput, weights: dict[str, Tensor], wide: Tensor
) -> dict[str, Tensor | None]:
    """Of <output, cotangent> + scale * auxiliary loss, by the oracle's names."""
    memory = config.memory
    loss = (reference.output * draw(*wide.shape).double()).sum()
    if "core" in weights:
        loss = loss + LOSS_SCALE * auxiliary_loss(weights["core"], memory.auxiliary_weight, memory.auxiliary_margin)
    loss.backward()
    return {**{name: weight.grad for name, weight in weights.items()}, "x": wide.grad}


def compare(layers: Layers, config: RunConfig, dtype: torch.dtype) -> Found:
    """The first layer and input whose picks do not hang on a rounding error, and what the oracle says of them."""
    for seed in range(20):
        layer = layers.build(config, loss_scale=LOSS_SCALE, dtype=dtype, seed=seed)
        x = torch.randn(*TOKENS, config.model.hidden, dtype=dtype)
        weights, wide = layers.oracle_weights(layer), x.double().requires_grad_()
        reference = layers.oracle(config, weights, wide)
        if reference.margin > MARGIN:
            expected = oracle_gradients(config, reference, weights, wide)
            return found_of(layers, layer, x.requires_grad_(), reference, expected)
    raise AssertionError("each seed has a tie: the case is too large")


def found_of(
    layers: Layers, layer: "MemoryLayer", x: Tensor, reference: ReferenceOutput, expected: dict[str, Tensor | None]
) -> Found:
    output, picks = layers.watched(layer, x)
    output.backward(draw(*x.shape).to(x.dtype))
    gradients = dict(
        zip(layers.oracle_weights(layer), (parameter.grad for parameter in layer.parameters()), strict=True)
    )
    return Found(
        output.detach(),
        picks.rows_TK,
        picks.blocks_TK,
        picks.scores_hTK.detach(),
        {**gradients, "x": x.grad},
        reference,
        expected,
    )


def assert_equals_oracle(found: Found, *, without_gradient: Set[str], computed_in: torch.dtype) -> None:
    """Picks, scores, output and all gradients; those of ``without_gradient`` are 0."""
    assert torch.equal(found.rows.long(), found.reference.rows)
    assert torch.equal(found.blocks.long(), found.reference.blocks)
    kwargs = {"computed_in": computed_in, "summed_terms": SUMMED_TERMS}
    assert_agrees(found.scores, found.reference.scores, **kwargs)
    assert_agrees(found.output, found.reference.output, **kwargs)
    assert found.gradients.keys() == found.reference_gradients.keys()
    for name, gradient in found.gradients.items():
        assert gradient is not None, name
        if name in without_gradient:
            assert gradient.count_nonzero() == 0, name
            continue
        assert gradient.count_nonzero() > 0, name
        assert_agrees(gradient, found.reference_gradients[name], **kwargs)


@pytest.mark.parametrize("changes", [*ANY_VARIANT, *WITHOUT_CORES])
def test_pkm_equals_the_oracle(layers: Layers, changes: dict[str, object]) -> None:
    check(layers, variant="pkm", **changes)


@pytest.mark.parametrize("changes", [*ANY_VARIANT, *WITH_CORES])
def test_ultramem_equals_the_oracle(layers: Layers, changes: dict[str, object]) -> None:
    check(layers, **changes)


@pytest.mark.parametrize("changes", WITH_PRE_VALUES)
def test_ultramem_v2_equals_the_oracle(layers: Layers, changes: dict[str, object]) -> None:
    check(layers, **{**V2, **changes})


@pytest.mark.parametrize("changes", [{"variant": "pkm"}, {}, V2], ids=["pkm", "ultramem", "ultramem_v2"])
def test_a_float64_layer_equals_the_oracle_to_its_last_digits(layers: Layers, changes: dict[str, object]) -> None:
    check(layers, dtype=torch.float64, **changes)


@pytest.mark.parametrize("variant", ["pkm", "ultramem"])
def test_the_softmax_of_one_slot_teaches_the_table_alone(layers: Layers, variant: str) -> None:
    """It is 1 whatever the score: nothing reaches what chose the slot."""
    chooses = {"conv.weight", "query.weight", "query_norm.weight", "key_norm.weight", "keys", "core", "x"}
    check(layers, without_gradient=chooses, variant=variant, softmax=True, top_m=1, auxiliary_weight=0)


def check(
    layers: Layers, *, dtype: torch.dtype = torch.float32, without_gradient: Set[str] = frozenset(), **changes: object
) -> None:
    config = layers.config(**changes)
    (found,) = run_distributed(1, compare, layers, config, dtype)
    assert_equals_oracle(found, without_gradient=without_gradient, computed_in=dtype)
    memory = config.memory
    blocks = 1 if memory.variant == "ultramem_v2" else memory.expansion
    assert found.blocks.unique().numel() == blocks, "every block was hit"
    straight = blocks == 1 and memory.value_dim == config.model.hidden and memory.variant != "ultramem_v2"
    assert ("projection.weight" in found.gradients) is not straight


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


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"query_conv_kernel": 0}, id="no-conv"),
        pytest.param({"query_conv_kernel": 1}, id="one-tap"),
        pytest.param({"query_conv_kernel": 2}, id="two-taps"),
        pytest.param({"query_conv_kernel": 5}, id="five-taps"),
        pytest.param({"variant": "pkm"}, id="pkm"),
        pytest.param(V2, id="ultramem_v2"),
    ],
)
@pytest.mark.parametrize("sequence_parallel", [False, True], ids=["whole-sequence", "sequence-parallel"])
def test_tensor_parallel_ranks_share_the_tokens(
    layers: Layers, sequence_parallel: bool, changes: dict[str, object]
) -> None:
    """With 5 taps each of 2 ranks holds 4 tokens of a sequence, exactly what its neighbour needs."""
    config = layers.config(**changes)
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


KINDS = [
    pytest.param({"variant": "pkm"}, id="pkm"),
    pytest.param({}, id="ultramem"),
    pytest.param(V2, id="ultramem_v2"),
]


@pytest.mark.parametrize("changes", KINDS)
def test_parameters_say_who_sums_their_gradients(layers: Layers, changes: dict[str, object]) -> None:
    (found,) = run_distributed(1, describe, layers, layers.config(**changes))
    tables = {name for name, allreduce in found["allreduce"].items() if not allreduce}
    assert tables == {"table.weight"} | ({"pre_values.table.weight"} if changes is V2 else set())
    assert {name for name, summed in found["summed over tp"].items() if not summed} == tables
    assert found["shown"] == [((8, 12), True)], "the observer sees each forward pass once"


def test_variants_differ_in_core_penalty_and_state(layers: Layers) -> None:
    for changes in ({}, V2):
        (found,) = run_distributed(1, describe, layers, layers.config(**changes))
        assert found["penalty"] > 0 and found["core"] == (4, 2, 2)
        assert found["buffers"] == ["retrieval.core.left", "retrieval.core.right"], "the shuffle follows from its seed"
    (pkm,) = run_distributed(1, describe, layers, layers.config(variant="pkm"))
    assert pkm["penalty"] is None and pkm["core"] is None and pkm["buffers"] == []
    (off,) = run_distributed(1, describe, layers, layers.config(auxiliary_weight=0))
    assert off["penalty"] is None


def checkpoint_keys(layers: Layers, config: RunConfig) -> dict[str, tuple[int, ...]]:
    layer = layers.build(config)
    state = layer.sharded_state_dict("memory.")
    assert {key.removeprefix("memory.") for key in state} == set(layer.state_dict())
    return {key: part.global_shape for key, part in state.items()}


@pytest.mark.parametrize("changes", KINDS)
def test_a_checkpoint_holds_all_that_a_layer_has(layers: Layers, changes: dict[str, object]) -> None:
    config = layers.config(**changes)
    (found,) = run_distributed(1, checkpoint_keys, layers, config)
    assert found["memory.table.weight"] == (49, 12), "the logical table"
    assert found.get("memory.pre_values.table.weight") == ((49, 6) if changes is V2 else None)
    assert ("memory.retrieval.core.left" in found) is (config.memory.variant != "pkm")


# --- Dropout ----------------------------------------------------------------------------------------------------------


def drop(layers: Layers, config: RunConfig, tp_ranks: int) -> dict[str, Tensor]:
    from megatron.core.tensor_parallel.random import get_cuda_rng_tracker

    rank = dist.get_rank()
    get_cuda_rng_tracker().reset()
    get_cuda_rng_tracker().add("model-parallel-rng", 5 + rank)  # as a run seeds it: each rank its own
    layer = layers.build(config, tp_ranks=tp_ranks)
    x = torch.ones(POSITIONS, 3, HIDDEN).requires_grad_()
    before = torch.get_rng_state()
    output = layer(x)
    assert torch.equal(torch.get_rng_state(), before), "the default generator is left alone"
    output.sum().backward()
    again = layer(x).detach()
    layer.eval()
    return {"train": output.detach(), "again": again, "eval": layer(x).detach(), "gradient": layer.table.weight.grad}


def test_dropout_takes_its_share_while_training(layers: Layers) -> None:
    (found,) = run_distributed(1, drop, layers, layers.config(dropout=0.25), 1)
    dropped = found["train"] == 0
    assert 0.15 < dropped.float().mean() < 0.35
    torch.testing.assert_close(found["train"][~dropped], found["eval"][~dropped] / 0.75)
    assert (found["eval"] != 0).all() and found["gradient"].isfinite().all()
    assert not torch.equal(found["again"] == 0, dropped), "each pass draws anew"
    (without,) = run_distributed(1, drop, layers, layers.config(), 1)
    assert torch.equal(without["train"], found["eval"]) and torch.equal(without["train"], without["eval"])


def test_tensor_parallel_ranks_drop_other_entries(layers: Layers) -> None:
    """All positions hold the same input and, without a convolution, the same output; what is dropped differs."""
    first, second = run_distributed(2, drop, layers, layers.config(dropout=0.5, query_conv_kernel=0), 2)
    assert torch.equal(first["train"], second["train"]), "both have the tokens of both"
    dropped = first["train"] == 0
    assert not torch.equal(dropped[: POSITIONS // 2], dropped[POSITIONS // 2 :])


# --- Types ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", KINDS)
def test_a_bf16_layer_computes_in_its_type(layers: Layers, changes: dict[str, object]) -> None:
    config = layers.config(**changes)

    def run() -> tuple[Tensor, Tensor]:
        layer = layers.build(config, dtype=torch.bfloat16)
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


def initial_size(layers: Layers, config: RunConfig) -> tuple[float, float]:
    """Variance of the output on standard normal input, and the mean score."""
    layer = layers.build(config)
    x = torch.randn(32, 4, config.model.hidden)
    with torch.no_grad():
        return float(layer(x).var()), float(layer.retrieve(x).scores_hTK.mean())


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="16-of-128"),
        pytest.param({"keys_per_side": 512, "top_m": 8}, id="8-of-1024"),
        pytest.param({"normalize_keys": False}, id="no-norm"),
        pytest.param({"tucker_rank": 3, "cores": 3}, id="rank-3"),
        pytest.param({"tucker_rank": 1, "cores": 1}, id="rank-1"),
        pytest.param({"key_layout": "full"}, id="full-keys"),
        pytest.param({"key_layout": "query_per_rank"}, id="query-per-rank"),
        pytest.param({"side_top_m": 8}, id="fewer-candidates"),
        pytest.param({"side_top_m": 32}, id="more-candidates"),
        pytest.param({"variant": "pkm"}, id="pkm"),
        pytest.param({"variant": "pkm", "expansion": 1, "value_dim": HIDDEN}, id="pkm-not-projected"),
        pytest.param({"variant": "pkm", "normalize_keys": False}, id="pkm-no-norm"),
    ],
)
def test_initial_output_has_the_variance_of_a_branch(layers: Layers, changes: dict[str, object]) -> None:
    """sqrt(1 / (2 L)) on standard normal input, and mean score 1 (paper, section 4). Measured with hidden 128, 12
    layers and 2 heads: ratios 0.99 to 1.06, mean scores 0.95 to 0.99, for 16 of 256 and of 2048, 4 of 64, ranks 1, 2
    and 3, 1, 2 and 4 cores, with and without norm (CPU, 2026-11)."""
    config = layers.config(**{"keys_per_side": 64, "top_m": 16, "key_dim": 96, **changes})
    ((variance, mean_score),) = run_distributed(1, initial_size, layers, config)
    assert 0.75 < (variance * 2 * config.model.layers) ** 0.5 < 1.33
    assert 0.75 < mean_score < 1.33


@pytest.mark.parametrize("variant", ["pkm", "ultramem"])
def test_softmax_weights_start_at_about_the_same_size(layers: Layers, variant: str) -> None:
    """They add up to 1 where scores add up to m. The softmax of products is uneven, which adds up to 60 %."""
    config = layers.config(variant=variant, softmax=True, keys_per_side=64, top_m=16, key_dim=96)
    ((variance, mean_score),) = run_distributed(1, initial_size, layers, config)
    assert 0.75 < (variance * 2 * config.model.layers) ** 0.5 < 1.6
    assert mean_score == pytest.approx(1 / 16, rel=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="expanded"),
        pytest.param({"expansion": 1}, id="no-expansion"),
        pytest.param({"key_layout": "query_per_rank", "side_top_m": 12}, id="query-per-rank"),
        pytest.param({"heads": 1, "heads_per_query": 1, "top_m": 32}, id="one-head"),
        pytest.param({"cores": 1}, id="one-core"),
        pytest.param({"pre_value_dim": 24, "value_dim": 72}, id="one-to-three"),
    ],
)
def test_initial_v2_output_has_the_variance_of_the_mlp(layers: Layers, changes: dict[str, object]) -> None:
    """0.064 F / (2 L D), within 30 % on standard normal input, and mean score 1 (arXiv 2508.18756, appendix A)."""
    sizes = {"keys_per_side": 64, "top_m": 16, "key_dim": 96, "value_dim": 48, "pre_value_dim": 48}
    small = layers.config(variant="ultramem_v2", **{**sizes, **changes})
    model = replace(small.model, hidden=64, ffn_hidden=256)
    ((variance, mean_score),) = run_distributed(1, initial_size, layers, replace(small, model=model))
    assert 0.7 < variance / (0.064 * model.ffn_hidden / (2 * model.layers * model.hidden)) < 1.3
    assert 0.85 < mean_score < 1.15


def test_value_size_of_the_published_v2(layers: Layers) -> None:
    """227M: 20 blocks, inner width 2496 (4992 with its gate), 32 picks, both tables 192 wide: 0.068."""
    from ultramem_megatron.memory.variants.ultramem_v2 import table_std
    from ultramem_megatron.planning.memory_shape import memory_shape

    config = layers.config(
        **V2 | {"pre_value_dim": 192, "value_dim": 192, "heads": 1, "heads_per_query": 1},
        top_m=32, keys_per_side=360, key_dim=192,
    )  # fmt: skip
    config = replace(config, model=replace(config.model, layers=20, hidden=768, ffn_hidden=2496))
    shape = memory_shape(config)
    assert table_std(config, shape, 0.0) == pytest.approx(0.068, abs=0.0005)
    assert table_std(config, shape, 15.0) == pytest.approx(0.034, abs=0.0005), "a fourth root"
    softened = replace(config, memory=replace(config.memory, softmax=True))
    assert table_std(softened, shape, 0.0) == pytest.approx(0.068 * 32**0.5, abs=0.003)


def side_scores(retrieval: Any, x: Tensor) -> Tensor:
    """Of all keys, [T, H, 2, r, S]."""
    return torch.einsum("thcad,hcsad->thcas", *retrieval.queries_and_keys(x))


@pytest.mark.parametrize("changes", KINDS)
def test_a_plain_start_is_that_of_product_keys(layers: Layers, changes: dict[str, object]) -> None:
    """Gains of 1, values N(0, 1 / Dv), pre-values N(0, 1 / Dp), cores U(0, 1)."""
    config = layers.config(**changes, initialization="plain", keys_per_side=40, key_dim=96)

    def measure() -> dict[str, Any]:
        layer = layers.build(config)
        x = torch.randn(64, 4, config.model.hidden)
        weights = {name: p.detach() for name, p in layer.named_parameters()}
        return {
            "sides": float(side_scores(layer.retrieval, x).detach().std()),
            "values": float(weights["table.weight"].std()),
            "pre-values": float(weights["pre_values.table.weight"].std()) if changes is V2 else None,
            "core": weights.get("retrieval.core.weight"),
        }

    (found,) = run_distributed(1, measure)
    assert found["sides"] == pytest.approx(1, abs=0.1)
    assert found["values"] == pytest.approx(12**-0.5, rel=0.03)
    assert found["pre-values"] == (pytest.approx(6**-0.5, rel=0.03) if changes is V2 else None)
    if found["core"] is not None:
        assert 0 < found["core"].min() < 0.2 and 0.8 < found["core"].max() < 1
