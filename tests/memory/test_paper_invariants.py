"""What the papers' equations promise of a layer, in float64, each against arithmetic that shares no code with it.

P1 is UltraMem (arXiv 2411.12364), P2 UltraMemV2 (arXiv 2508.18756). Rank 0 of one process does the work: a failed
assertion inside is raised in the test.
"""

# Letters: s positions, b sequences, T = s * b tokens, D hidden width, H heads, r Tucker rank, S keys of a side, c
#          candidates of a side, K picks of a token, h score cores, N rows, E blocks, V value dimension.

import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from ultramem_megatron.config.memory import PartitionName
from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.testing.distributed import run_distributed
from ultramem_megatron.testing.reference_layer import lookup_in_virtual_table
from ultramem_megatron.testing.reference_weights import leading_singular_vectors
from ultramem_megatron.testing.tolerances import assert_agrees

if TYPE_CHECKING:  # importing a layer imports megatron-core
    from ultramem_megatron.memory.layer import MemoryLayer

Layers = Any  # the fixture's class lives in conftest.py
POSITIONS, SEQUENCES = 6, 2
TOKENS = POSITIONS * SEQUENCES
EXACT = {"rtol": 1e-11, "atol": 1e-11}
V2 = {"variant": "ultramem_v2", "pre_value_dim": 6}
BARE = {"query_conv_kernel": 0, "normalize_keys": False}
"""A layer whose side scores are two matrix products."""


def alone(check: Callable[[], None]) -> None:
    run_distributed(1, check)


def build(layers: Layers, config: RunConfig, **weights: Tensor) -> "MemoryLayer":
    """A float64 layer; ``weights`` replaces parameters, by the oracle's names with _ for a dot."""
    layer: MemoryLayer = layers.build(config, dtype=torch.float64)
    names = dict(zip(layers.oracle_weights(layer), layer.parameters(), strict=True))
    with torch.no_grad():
        for name, weight in weights.items():
            next(p for n, p in names.items() if n.replace(".", "_") == name).copy_(weight)
    layer.begin_step()
    return layer


def draw(*shape: int, seed: int = 3) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def inputs(config: RunConfig) -> Tensor:
    return draw(POSITIONS, SEQUENCES, config.model.hidden)


def side_scores(config: RunConfig, weights: dict[str, Tensor], x_sbD: Tensor) -> Tensor:
    """S_row and S_col [2, T, H, r, S] of a bare layer with split keys (P1 eq. 4)."""
    keys_H2SrA = weights["keys"]
    queries = x_sbD.flatten(0, 1) @ weights["query.weight"].T
    queries_TQ2rA = queries.reshape(TOKENS, -1, 2, *keys_H2SrA.shape[-2:])
    return torch.einsum(
        "thcra,hcsra->cthrs", queries_TQ2rA.repeat_interleave(config.memory.heads_per_query, dim=1), keys_H2SrA
    )


def of_slots(config: RunConfig, sides_2THS: Tensor, slots_TK: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column scores [T, H, m] of the slots."""
    slots_THm = slots_TK.unflatten(1, (config.memory.heads, -1))
    rows_THS, columns_THS = sides_2THS
    side = config.memory.grid_side
    return rows_THS.gather(2, slots_THm // side), columns_THS.gather(2, slots_THm % side)


# --- IVE: implicit value expansion ------------------------------------------------------------------------------------


@pytest.mark.parametrize("expansion", [1, 4, 9])
@pytest.mark.parametrize("kind", [{"variant": "pkm"}, {"cores": 1}, {"cores": 3}], ids=["pkm", "one-core", "cores"])
def test_pooled_then_projected_is_the_lookup_in_the_virtual_table(
    layers: Layers, kind: dict[str, object], expansion: int
) -> None:
    """P1 eq. 13 to 15: sum_p W_p^T (V^T s_p) = rows of the E * N virtual rows V W_p, at the layer's own addresses."""
    config = layers.config(expansion=expansion, **kind)

    def check() -> None:
        layer, x = build(layers, config), inputs(config)
        with torch.no_grad():
            slots_TK, scores_hTK = layer.retrieval(x)
            rows, blocks = layer.addresses(torch.arange(expansion * config.memory.num_rows))
        weights = layers.oracle_weights(layer)
        address_of_slot = blocks.long() * config.memory.num_rows + rows.long()
        projections = weights["projection.weight"].chunk(expansion, dim=1)
        width = config.memory.value_dim // len(scores_hTK)
        expected_TD = torch.zeros(TOKENS, config.model.hidden, dtype=torch.float64)
        for core, scores_TK in enumerate(scores_hTK):
            mine = slice(core * width, (core + 1) * width)
            virtual = torch.cat([weights["table"][:, mine] @ w[:, mine].T for w in projections])
            expected_TD = expected_TD + (scores_TK.unsqueeze(2) * virtual[address_of_slot[slots_TK]]).sum(dim=1)
        found_TD = layer(x).flatten(0, 1)
        torch.testing.assert_close(found_TD, expected_TD, **EXACT)
        assert blocks[slots_TK].unique().numel() == expansion, "every block was hit"
        # the oracle's own picks lead to the same
        reference = layers.oracle(config, weights, x)
        torch.testing.assert_close(found_TD, lookup_in_virtual_table(config.memory, weights, reference), **EXACT)
        # and so do the gradients, through a table that only the definition has
        found_TD.backward(draw(TOKENS, config.model.hidden, seed=4))
        expected_TD.backward(draw(TOKENS, config.model.hidden, seed=4))
        for name in ("table", "projection.weight"):
            parameter = layer.table.weight if name == "table" else layer.projection.weight
            torch.testing.assert_close(parameter.grad, weights[name].grad, **EXACT)

    alone(check)


@pytest.mark.parametrize("variant", [{"variant": "pkm"}, {}, V2], ids=["pkm", "ultramem", "v2"])
def test_addresses_are_a_bijection(layers: Layers, variant: dict[str, object]) -> None:
    """P1 section 2.4: each (row, block) belongs to one virtual slot; P2 eq. 12 forgets the block, not the slot."""

    def check() -> None:
        for expansion in (1, 4, 9, 16):
            config = layers.config(expansion=expansion, **variant)
            N = config.memory.num_rows
            rows, blocks = layers.build(config).addresses(torch.arange(expansion * N))
            assert (rows.bincount(minlength=N) == expansion).all()
            if variant is V2:
                assert not blocks.any()
            else:
                assert (blocks.long() * N + rows).sort().values.tolist() == list(range(expansion * N))

    alone(check)


@pytest.mark.parametrize("value_dim", [12, 16], ids=["projected", "as-wide-as-the-model"])
@pytest.mark.parametrize("variant", ["pkm", "ultramem"])
def test_without_expansion_it_is_plain_pooling(layers: Layers, variant: str, value_dim: int) -> None:
    """P1 eq. 1 and 14 with E = 1: slots are rows, o = V^T s, and a projection only where V is not D wide."""
    config = layers.config(variant=variant, expansion=1, cores=1, value_dim=value_dim)

    def check() -> None:
        layer, x = build(layers, config), inputs(config)
        weights = layers.oracle_weights(layer)
        with torch.no_grad():
            slots_TK, scores_1TK = layer.retrieval(x)
            assert torch.equal(layer.retrieve(x).rows_TK.long(), slots_TK)
            dense_TN = torch.zeros(TOKENS, config.memory.num_rows, dtype=torch.float64)
            dense_TN.scatter_add_(1, slots_TK, scores_1TK[0])  # a row that two heads pick counts twice
            expected_TV = dense_TN @ weights["table"]
            if value_dim == 12:
                expected_TV = expected_TV @ weights["projection.weight"].T
            assert ("projection.weight" in weights) is (value_dim == 12)
            torch.testing.assert_close(layer(x).flatten(0, 1), expected_TV, **EXACT)

    alone(check)


# --- MCS: multi-core scoring ------------------------------------------------------------------------------------------


def test_equal_cores_weigh_each_slice_with_their_share(layers: Layers) -> None:
    """P1 eq. 16 and 17: with C^(i) = C / h each slice is weighed by S / h, so the output is that of C, over h."""
    one, three = layers.config(cores=1), layers.config(cores=3)

    def check() -> None:
        whole = build(layers, one)
        weights = {n.replace(".", "_"): w.detach() for n, w in layers.oracle_weights(whole).items()}
        parts = build(layers, three, **{**weights, "core": (weights["core"] / 3).expand(-1, 3, -1, -1)})
        x = inputs(one)
        with torch.no_grad():
            picked, shared = whole.retrieve(x), parts.retrieve(x)
            assert torch.equal(shared.rows_TK, picked.rows_TK) and torch.equal(shared.blocks_TK, picked.blocks_TK)
            for scores_TK in shared.scores_hTK:
                torch.testing.assert_close(scores_TK, picked.scores_hTK[0] / 3, **EXACT)
            torch.testing.assert_close(parts(x), whole(x) / 3, **EXACT)

    alone(check)


def test_cores_choose_by_their_sum_and_weigh_one_by_one(layers: Layers) -> None:
    """P1 eq. 16: any split of C picks what C picks; the scores of the cores add up to its score, slice i of the
    output moves with core i alone."""
    one, two = layers.config(cores=1, expansion=1, value_dim=16), layers.config(cores=2, expansion=1, value_dim=16)

    def check() -> None:
        whole = build(layers, one)
        weights = {n: w.detach() for n, w in layers.oracle_weights(whole).items()}
        first = draw(*weights["core"].shape)
        split = torch.cat([first, weights["core"] - first], dim=1)
        parts = build(layers, two, **{n.replace(".", "_"): w for n, w in weights.items() if n != "core"}, core=split)
        x = inputs(one)
        with torch.no_grad():
            assert torch.equal(parts.retrieve(x).rows_TK, whole.retrieve(x).rows_TK)
            scores_2TK = parts.retrieve(x).scores_hTK
            torch.testing.assert_close(scores_2TK.sum(0, keepdim=True), whole.retrieve(x).scores_hTK, **EXACT)
            rows_TKV = weights["table"][whole.retrieve(x).rows_TK.long()]
            expected = [(s.unsqueeze(2) * rows_TKV[..., 8 * i : 8 * i + 8]).sum(1) for i, s in enumerate(scores_2TK)]
            torch.testing.assert_close(parts(x).flatten(0, 1), torch.cat(expected, dim=1), **EXACT)

    alone(check)


# --- TDQKR: Tucker-decomposed retrieval -------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_one_core_is_tdqkr(layers: Layers, rank: int) -> None:
    """P1 eq. 4 to 10 with h = 1: candidates by u^T S_row and t^T S_col, then the best of S_row^T C S_col."""
    config = layers.config(cores=1, tucker_rank=rank, **BARE)

    def check() -> None:
        layer, x, memory = build(layers, config), inputs(config), config.memory
        weights = {n: w.detach() for n, w in layers.oracle_weights(layer).items()}
        rows_THrS, columns_THrS = side_scores(config, weights, x)
        u_Hr, t_Hr = leading_singular_vectors(weights["core"])
        grid_THSS = torch.einsum("thas,hab,thbz->thsz", rows_THrS, weights["core"][:, 0], columns_THrS)
        chosen = torch.zeros_like(grid_THSS, dtype=torch.bool)
        best_rows = torch.einsum("hr,thrs->ths", u_Hr, rows_THrS).topk(memory.top_m).indices
        best_columns = torch.einsum("hr,thrs->ths", t_Hr, columns_THrS).topk(memory.top_m).indices
        for t in range(TOKENS):
            for head in range(memory.heads):
                chosen[t, head, best_rows[t, head].unsqueeze(1), best_columns[t, head]] = True
        best, slots = grid_THSS.masked_fill(~chosen, -math.inf).flatten(2).topk(memory.top_m)
        with torch.no_grad():
            slots_TK, scores_1TK = layer.retrieval(x)
        assert torch.equal(slots_TK, slots.flatten(1))
        torch.testing.assert_close(scores_1TK[0], best.flatten(1), **EXACT)

    alone(check)


def test_rank_one_scores_are_products_and_rank_otherwise_than_sums(layers: Layers) -> None:
    """P1 eq. 5 with r = 1, C = [1]: score = s_row * s_col; PKM (eq. 2) adds, and so picks other slots."""
    product = layers.config(tucker_rank=1, cores=1, **BARE)
    total = layers.config(variant="pkm", **BARE)

    def check() -> None:
        ones = torch.ones(product.memory.heads, 1, 1, 1, dtype=torch.float64)
        multiplied = build(layers, product, core=ones)
        weights = {n: w.detach() for n, w in layers.oracle_weights(multiplied).items()}
        added = build(layers, total, **{n.replace(".", "_"): w for n, w in weights.items() if n != "core"})
        x = inputs(product)
        sides_2THS = side_scores(product, weights, x).squeeze(3)
        with torch.no_grad():
            found = [layer.retrieval(x) for layer in (multiplied, added)]
        for (slots_TK, scores_1TK), join in zip(found, (torch.mul, torch.add), strict=True):
            expected = join(*of_slots(product, sides_2THS, slots_TK)).flatten(1)
            torch.testing.assert_close(scores_1TK[0], expected, **EXACT)
        picks = [slots.unflatten(1, (product.memory.heads, -1)).sort(dim=2).values for slots, _ in found]
        differ = (picks[0] != picks[1]).any(dim=2).double().mean()
        assert differ > 0.1, "of the heads' picks; here keys are few and most candidates are kept"

    alone(check)


def test_two_very_negative_sides_are_no_candidates(layers: Layers) -> None:
    """P1 eq. 8 and 9: stage 1 keeps the largest side scores, so a product of two negatives, the largest of the grid,
    is never seen: TDQKR is no exhaustive search, even at rank 1."""
    config = layers.config(
        tucker_rank=1, cores=1, heads=1, heads_per_query=1, key_dim=1, keys_per_side=3, top_m=2, expansion=1, **BARE
    )

    def check() -> None:
        D, side = config.model.hidden, torch.tensor([3.0, 2.0, -9.0])
        query = torch.zeros(2, D)
        query[:, 0] = 1.0
        layer = build(
            layers, config, query_weight=query, keys=side.expand(2, 3).reshape(1, 2, 3, 1, 1), core=torch.ones(1)
        )
        with torch.no_grad():
            slots, scores = layer.retrieval(torch.ones(1, 1, D, dtype=torch.float64))
        assert slots.tolist() == [[0, 1]] and scores.tolist() == [[[9.0, 6.0]]], "81 of slot 8 is not there"

    alone(check)


@pytest.mark.parametrize("expansion", [1, 4])
def test_product_keys_are_exhaustive_and_weighed_by_a_softmax(layers: Layers, expansion: int) -> None:
    """P1 eq. 1 to 3: the m best of all S * S sums, weighed by their softmax; each head's weights add up to 1."""
    config = layers.config(variant="pkm", softmax=True, expansion=expansion, **BARE)

    def check() -> None:
        layer, x, memory = build(layers, config), inputs(config), config.memory
        rows_THS, columns_THS = side_scores(config, layers.oracle_weights(layer), x).squeeze(3).detach()
        best, slots = (rows_THS.unsqueeze(3) + columns_THS.unsqueeze(2)).flatten(2).topk(memory.top_m)
        with torch.no_grad():
            slots_TK, weights_1TK = layer.retrieval(x)
        assert torch.equal(slots_TK, slots.flatten(1))
        expected = best.exp() / best.exp().sum(dim=2, keepdim=True)
        torch.testing.assert_close(weights_1TK[0], expected.flatten(1), **EXACT)
        of_heads = weights_1TK.unflatten(2, (memory.heads, -1)).sum(dim=3)
        torch.testing.assert_close(of_heads, torch.ones_like(of_heads), **EXACT)

    alone(check)


def test_norms_take_the_size_out_of_queries_and_keys(layers: Layers) -> None:
    """P1 Table 2, "q/k LN": each rank's query and key have unit root mean square, so scores do not grow with them."""
    config = layers.config()

    def check() -> None:
        layer, x = build(layers, config), inputs(config)
        weights = layers.oracle_weights(layer)
        loud = build(
            layers, config, query_weight=1e6 * weights["query.weight"].detach(), keys=1e6 * weights["keys"].detach()
        )
        louder = build(
            layers, config, query_weight=1e9 * weights["query.weight"].detach(), keys=1e9 * weights["keys"].detach()
        )
        with torch.no_grad():
            torch.testing.assert_close(louder(x), loud(x), rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(loud(x), layer(x), rtol=1e-3, atol=1e-3)

    alone(check)


def test_one_query_for_each_rank_may_be_the_same_for_all(layers: Layers) -> None:
    """P2 section 3 gives each Tucker rank a query; with equal queries that is the published V1's one query."""
    per_rank = layers.config(key_layout="query_per_rank", tucker_rank=3)
    shared = layers.config(key_layout="full", tucker_rank=3)

    def check() -> None:
        one = build(layers, shared)
        weights = {n: w.detach() for n, w in layers.oracle_weights(one).items()}
        A = shared.memory.key_dim
        repeated = weights["query.weight"].unflatten(0, (-1, 2, 1, A)).expand(-1, -1, 3, -1, -1).flatten(0, 3)
        others = {n.replace(".", "_"): w for n, w in weights.items() if n != "query.weight"}
        many = build(layers, per_rank, query_weight=repeated, **others)
        x = inputs(shared)
        with torch.no_grad():
            assert torch.equal(many.retrieve(x).rows_TK, one.retrieve(x).rows_TK)
            torch.testing.assert_close(many(x), one(x), **EXACT)

    alone(check)


# --- Auxiliary loss ---------------------------------------------------------------------------------------------------


def core_with(*singular_values: float, cores: int = 2) -> Tensor:
    """[1, h, r, r]: cores whose sum has these singular values, between random rotations."""
    left, right = (torch.linalg.qr(draw(len(singular_values), len(singular_values), seed=s))[0] for s in (1, 2))
    total = left @ torch.diag(torch.tensor(singular_values, dtype=torch.float64)) @ right
    others = draw(cores - 1, *total.shape, seed=5)
    return torch.cat([others, (total - others.sum(0)).unsqueeze(0)]).unsqueeze(0)


@pytest.mark.parametrize(
    ("singular_values", "expected"),
    [
        ((2.0, 0.15 - 1e-9), 0.0),
        ((0.1, 0.05), 0.0),
        ((2.0, 0.65), 0.5**2),
        ((9.0, 0.65), 0.5**2),  # the leading one is free
        ((3.0, 1.0, 0.5), (0.85**2 + 0.35**2) / 2),
        ((3.0, 1.0, 0.1, 0.05), 0.85**2 / 3),
    ],
)
def test_the_loss_takes_singular_values_beyond_the_margin(
    layers: Layers, singular_values: tuple[float, ...], expected: float
) -> None:
    """P1 eq. 11 and 12: L = alpha / (r - 1) * sum over i >= 2 of max(0, lambda_i - tau)^2, tau = 0.15."""
    rank = len(singular_values)
    config = layers.config(heads=1, heads_per_query=1, tucker_rank=rank, auxiliary_weight=1e-3, auxiliary_margin=0.15)

    def check() -> None:
        layer = build(layers, config, core=core_with(*singular_values))
        loss = layer.penalty()
        assert loss is not None
        assert loss.item() == pytest.approx(1e-3 * expected, rel=1e-9, abs=0)
        loss.backward()
        core = layer.retrieval.core.weight
        assert (core.grad.count_nonzero() == 0).item() is (expected == 0)

    alone(check)


def test_the_loss_of_uniform_cores(layers: Layers) -> None:
    """With two cores U(0, 1) of rank 2, the published code's start, E[max(0, lambda_2 - 0.15)^2] = 0.082 a head."""
    heads = 1000
    config = layers.config(heads=heads, initialization="plain", auxiliary_weight=1.0, auxiliary_margin=0.15)

    def check() -> None:
        losses = [layers.build(config, dtype=torch.float64, seed=seed).penalty().item() for seed in range(4)]
        assert sum(losses) / (4 * heads) == pytest.approx(0.082, abs=0.006)

    alone(check)


# --- Repeated rows, partitions ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [{"variant": "pkm"}, {}, V2], ids=["pkm", "ultramem", "v2"])
def test_a_row_that_a_token_meets_again_counts_again(layers: Layers, kind: dict[str, object]) -> None:
    """P1 section 2.4: two heads, or two virtual slots, may lead one token to the same physical row; both count, in
    the output and in the row's gradient. 16 picks of 4 rows."""
    config = layers.config(keys_per_side=2, top_m=4, side_top_m=2, **kind)

    def check() -> None:
        layer, x = build(layers, config), inputs(config)
        weights = layers.oracle_weights(layer)
        output_sbD, picks = layers.watched(layer, x)
        repeats = torch.stack([rows.bincount(minlength=4) for rows in picks.rows_TK])
        assert (repeats.max(dim=1).values >= 4).all(), "each token meets a row four times"
        blocks = 1 if kind is V2 else config.memory.expansion
        slices = weights["table"].chunk(len(picks.scores_hTK), dim=1)
        sums = []
        for scores_TK, of_core in zip(picks.scores_hTK, slices, strict=True):
            # [T, E * N] weights, summed where an address repeats, over a table of E copies
            address_TK = picks.blocks_TK.long() * 4 + picks.rows_TK.long()
            dense = torch.zeros(TOKENS, blocks * 4, dtype=torch.float64).scatter_add(1, address_TK, scores_TK.detach())
            sums.append(dense.unflatten(1, (blocks, 4)) @ of_core)
        expected_TD = torch.cat(sums, dim=2).flatten(1) @ weights["projection.weight"].T
        torch.testing.assert_close(output_sbD.flatten(0, 1), expected_TD, **EXACT)
        cotangent = draw(TOKENS, config.model.hidden, seed=4)
        output_sbD.flatten(0, 1).backward(cotangent)
        expected_TD.backward(cotangent)
        torch.testing.assert_close(layer.table.weight.grad, weights["table"].grad, **EXACT)

    alone(check)


@pytest.mark.parametrize("partition", [PartitionName.NUMBER_WISE, PartitionName.DIMENSION_WISE])
@pytest.mark.parametrize("kind", [{"variant": "pkm"}, {}, V2], ids=["pkm", "ultramem", "v2"])
def test_a_split_table_is_the_whole_table(layers: Layers, kind: dict[str, object], partition: PartitionName) -> None:
    """P1 section 4, Fig. 8: however the tables are split, each rank's tokens get what the oracle gives them, and the
    gradients are those of the whole. 9 rows on 2 ranks: rows repeat inside tokens and across ranks."""
    config = layers.config(keys_per_side=3, auxiliary_weight=0, **kind)
    outputs, gradients = run_distributed(1, unsplit, layers, config)[0]
    # columns' shares of the products with rows are summed in fp32, on the way out (V2) or back (scores)
    sums = torch.float32 if partition is PartitionName.DIMENSION_WISE else torch.float64
    ranks = run_distributed(2, split, layers, config, partition)
    for expected, found in zip(outputs, ranks, strict=True):
        assert_agrees(found.output, expected, computed_in=sums if kind is V2 else torch.float64, summed_terms=64)
        for name, (rows, columns) in found.shards.items():
            part = gradients[name][rows, columns]
            assert part.numel() < gradients[name].numel() and part.count_nonzero() > 0
            assert_agrees(
                found.gradients[name], part, computed_in=sums if kind is V2 else torch.float64, summed_terms=64
            )
    for name in gradients.keys() - ranks[0].shards.keys():
        total = ranks[0].gradients[name] + ranks[1].gradients[name]
        assert_agrees(total, gradients[name], computed_in=sums, summed_terms=64)


@dataclasses.dataclass(frozen=True)
class OnARank:
    """What one rank of a split table computes; gradients by the oracle's names."""

    output: Tensor
    gradients: dict[str, Tensor]
    shards: dict[str, tuple[slice, slice]]


def split(layers: Layers, config: RunConfig, partition: PartitionName) -> OnARank:
    layer, rank = layers.build(config, dtype=torch.float64, partition=partition), dist.get_rank()
    x = draw(POSITIONS, SEQUENCES, config.model.hidden, seed=rank)
    output = layer(x)
    output.backward(draw(*x.shape, seed=10 + rank))
    tables = {"table": layer.table}
    if layer.pre_values is not None:
        tables["pre_values.table"] = layer.pre_values.table
    sides = {name: (table.shard.rows, table.shard.columns) for name, table in tables.items()}
    return OnARank(
        output.detach(),
        dict(zip(layers.oracle_weights(layer), (p.grad for p in layer.parameters()), strict=True)),
        {n: (slice(rows.start, rows.stop), slice(columns.start, columns.stop)) for n, (rows, columns) in sides.items()},
    )


def unsplit(layers: Layers, config: RunConfig) -> tuple[list[Tensor], dict[str, Tensor]]:
    """The oracle's outputs for the tokens of both ranks, and its gradients for all of them."""
    weights, outputs = layers.oracle_weights(layers.build(config, dtype=torch.float64)), []
    for rank in range(2):
        x = draw(POSITIONS, SEQUENCES, config.model.hidden, seed=rank)
        output = layers.oracle(config, weights, x).output
        output.backward(draw(*x.shape, seed=10 + rank))
        outputs.append(output.detach())
    return outputs, {name: weight.grad for name, weight in weights.items()}


# --- UltraMemV2 -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("expansion", [1, 4])
def test_pre_values_weigh_slots_by_a_product_with_the_input(layers: Layers, expansion: int) -> None:
    """P2 eq. 12 and 15: o = W^T V^T ((P W_pre x) * s), with s summed over all virtual blocks of a row, and one W."""
    config = layers.config(**V2, expansion=expansion, cores=1)

    def check() -> None:
        layer, x = build(layers, config), inputs(config)
        weights = layers.oracle_weights(layer)
        with torch.no_grad():
            slots_TK, scores_1TK = layer.retrieval(x)
            rows_of_slots, _ = layer.addresses(torch.arange(expansion * config.memory.num_rows))
            s_TN = torch.zeros(TOKENS, config.memory.num_rows, dtype=torch.float64)
            s_TN.scatter_add_(1, rows_of_slots.long()[slots_TK], scores_1TK[0])
            products_TN = (x.flatten(0, 1) @ weights["pre_values.weight"].T) @ weights["pre_values.table"].T
            expected_TD = (products_TN * s_TN) @ weights["table"] @ weights["projection.weight"].T
            torch.testing.assert_close(layer(x).flatten(0, 1), expected_TD, **EXACT)

    alone(check)


def test_a_shared_projection_is_a_layer_with_equal_blocks(layers: Layers) -> None:
    """P2 eq. 12: V2's weights on constant pre-value products of 1 are UltraMem whose W_p are all the same."""
    first, second = layers.config(), layers.config(**{**V2, "pre_value_dim": 1})

    def check() -> None:
        # <P, W x> = 1: a constant channel of the input, and tables of ones
        x = inputs(first)
        x[..., 0] = 1.0
        pick_first = torch.zeros(1, first.model.hidden)
        pick_first[0, 0] = 1.0
        new = build(layers, second, pre_values_weight=pick_first, pre_values_table=torch.ones(49, 1))
        shared = {n: w.detach() for n, w in layers.oracle_weights(new).items() if not n.startswith("pre_values")}
        shared["projection.weight"] = shared["projection.weight"].repeat(1, first.memory.expansion)
        old = build(layers, first, **{n.replace(".", "_"): w for n, w in shared.items()})
        with torch.no_grad():
            torch.testing.assert_close(new(x), old(x), **EXACT)

    alone(check)


# --- What survives, what does not carry gradients ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", [{}, V2], ids=["ultramem", "v2"])
def test_the_choice_of_slots_carries_no_gradient(layers: Layers, kind: dict[str, object]) -> None:
    """P1 eq. 7 to 10: u and t choose, and the loss does not pull on them: the core's gradient is that of the scores
    at fixed slots, sum over picks of g * s_row s_col^T."""
    config = layers.config(**{**kind, **BARE, "auxiliary_weight": 0})

    def check() -> None:
        layer, x = build(layers, config), inputs(config)
        weights = layers.oracle_weights(layer)
        slots_TK, scores_hTK = layer.retrieval(x)
        g_hTK = draw(*scores_hTK.shape, seed=6)
        scores_hTK.backward(g_hTK)
        rows_THrS, columns_THrS = side_scores(config, weights, x).detach()
        memory = config.memory
        slots_THm = slots_TK.unflatten(1, (memory.heads, -1))
        index = slots_THm.unsqueeze(2).expand(-1, -1, memory.tucker_rank, -1)
        rows = rows_THrS.gather(3, index // memory.grid_side)
        columns = columns_THrS.gather(3, index % memory.grid_side)
        expected = torch.einsum("cthm,tham,thbm->hcab", g_hTK.unflatten(2, (memory.heads, -1)), rows, columns)
        torch.testing.assert_close(layer.retrieval.core.weight.grad, expected, **EXACT)

    alone(check)


def test_the_output_is_linear_in_table_and_projection(layers: Layers) -> None:
    """P1 section 2.4: nothing nonlinear lies between values and output, so W_p may be folded into V at inference."""
    config = layers.config()

    def check() -> None:
        layer, x = build(layers, config), inputs(config)
        first, second = draw(*layer.table.weight.shape, seed=1), draw(*layer.table.weight.shape, seed=2)
        outputs = []
        with torch.no_grad():
            for table in (first, second, 2 * first - 3 * second):
                layer.table.weight.copy_(table)
                outputs.append(layer(x))
        torch.testing.assert_close(outputs[2], 2 * outputs[0] - 3 * outputs[1], **EXACT)

    alone(check)


def test_one_shuffle_seed_is_one_layer(layers: Layers) -> None:
    """P1 section 2.4: the permutation is fixed; it follows from the config, so every rank and every restart has it."""
    config = layers.config()
    other = dataclasses.replace(config, memory=dataclasses.replace(config.memory, shuffle_seed=1))

    def check() -> None:
        x = inputs(config)
        with torch.no_grad():
            first, again, shuffled = (build(layers, one)(x) for one in (config, config, other))
        assert torch.equal(first, again) and not torch.allclose(first, shuffled)

    alone(check)
