"""The oracle against what the definitions promise: second ways to compute the same, and cases done by hand."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv1d

from ultramem_megatron.config.memory import KeyLayout, MemoryConfig, VariantName
from ultramem_megatron.testing.gradients import check_gradients
from ultramem_megatron.testing.reference_layer import (
    ReferenceOutput,
    auxiliary_loss,
    lookup_in_virtual_table,
    reference_memory_layer,
    reference_pooling,
    virtual_table,
)
from ultramem_megatron.testing.reference_weights import (
    leading_singular_vectors,
    random_weights,
    reference_weight_shapes,
    shuffled_addresses,
)

HIDDEN = 7


def small_config(**changes: object) -> MemoryConfig:
    """An UltraMem layer of small odd sizes."""
    sizes: dict[str, object] = {
        "variant": VariantName.ULTRAMEM,
        "spans": "1:1",
        "keys_per_side": 5,
        "top_m": 3,
        "heads": 4,
        "heads_per_query": 2,
        "key_dim": 6,
        "value_dim": 6,
        "tucker_rank": 2,
        "cores": 2,
        "expansion": 4,
        "query_conv_kernel": 3,
    }
    return MemoryConfig(**(sizes | changes))  # type: ignore[arg-type]


def run(
    config: MemoryConfig, *, positions: int = 3, sequences: int = 2, seed: int = 0
) -> tuple[dict[str, Tensor], Tensor, ReferenceOutput]:
    """Random weights and input, and what the layer makes of them."""
    weights = random_weights(reference_weight_shapes(config, HIDDEN), seed, torch.float64)
    x = torch.randn(positions, sequences, HIDDEN, dtype=torch.float64, requires_grad=True)
    return weights, x, apply(config, weights, x, seed=seed)


def apply(config: MemoryConfig, weights: dict[str, Tensor], x: Tensor, *, seed: int = 0) -> ReferenceOutput:
    u, t = leading_singular_vectors(weights["core"]) if "core" in weights else (None, None)
    return reference_memory_layer(config, weights, x, slot_to_address=shuffled_addresses(config, seed), u=u, t=t)


def side_scores(config: MemoryConfig, weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """A second way to [T, H, 2, R, S]: library convolution and norm, all tokens and heads at once."""
    s, b, D = x.shape
    taps = config.query_conv_kernel
    seen = x
    if taps:
        padded = torch.nn.functional.pad(x.permute(1, 2, 0), (taps - 1, 0))
        seen = conv1d(padded, weights["conv.weight"].unsqueeze(1), groups=D).permute(2, 0, 1)
    ranks, width = weights["keys"].shape[3:]
    queries = torch.nn.functional.linear(seen, weights["query.weight"])
    queries = queries.reshape(s * b, config.heads // config.heads_per_query, 2, -1, width)
    keys = weights["keys"]
    if config.normalize_keys:
        queries = torch.nn.functional.rms_norm(queries, (width,), weights["query_norm.weight"], eps=1e-6)
        keys = torch.nn.functional.rms_norm(keys, (width,), weights["key_norm.weight"], eps=1e-6)
    if config.key_layout is KeyLayout.FULL:
        queries = queries.repeat(1, 1, 1, ranks, 1)
    return torch.einsum("thcra,hcsra->thcrs", queries.repeat_interleave(config.heads_per_query, dim=1), keys)


def grid_scores(config: MemoryConfig, weights: dict[str, Tensor], scores: Tensor) -> tuple[Tensor, Tensor]:
    """Of all slots: their scores [C, T, H, S, S], and which of them are candidates [T, H, S, S]."""
    rows, columns = scores.unbind(2)
    if "core" in weights:
        grid = torch.einsum("thrs,hcrq,thqz->cthsz", rows, weights["core"], columns)
        u, t = leading_singular_vectors(weights["core"])
        rows, columns = torch.einsum("hr,thrs->ths", u, rows), torch.einsum("hr,thrs->ths", t, columns)
    else:
        rows, columns = rows.squeeze(2), columns.squeeze(2)
        grid = (rows.unsqueeze(3) + columns.unsqueeze(2)).unsqueeze(0)
    # at least the k-th largest of its side
    kept = config.side_top_m or config.top_m
    best_rows, best_columns = (side >= side.sort(dim=2).values[..., -kept, None] for side in (rows, columns))
    return grid, best_rows.unsqueeze(3) & best_columns.unsqueeze(2)


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(small_config(), id="all-parts"),
        pytest.param(small_config(expansion=1, cores=1, query_conv_kernel=0, normalize_keys=False), id="tdqkr-alone"),
        pytest.param(small_config(heads=3, heads_per_query=1, cores=3, expansion=9), id="three-of-each"),
        pytest.param(small_config(query_conv_kernel=5), id="more-taps-than-positions"),
        pytest.param(small_config(key_layout=KeyLayout.FULL), id="full-keys"),
        pytest.param(small_config(key_layout=KeyLayout.QUERY_PER_RANK, tucker_rank=3), id="query-per-rank"),
        pytest.param(small_config(side_top_m=2), id="fewer-candidates"),
        pytest.param(small_config(side_top_m=5, top_m=9), id="more-slots-than-keys"),
        pytest.param(small_config(softmax=True), id="softmax"),
        pytest.param(small_config(variant=VariantName.PKM), id="pkm"),
        pytest.param(small_config(variant=VariantName.PKM, softmax=True, side_top_m=2), id="pkm-softmax"),
        pytest.param(small_config(variant=VariantName.PKM, key_layout=KeyLayout.QUERY_PER_RANK), id="pkm-no-ranks"),
    ],
)
def test_slots_and_scores_equal_a_second_way_to_compute_them(config: MemoryConfig) -> None:
    weights, x, found = run(config)
    grid, candidate = grid_scores(config, weights, side_scores(config, weights, x))
    slots = grid.sum(0).masked_fill(~candidate, -math.inf).flatten(2).topk(config.top_m).indices
    assert torch.equal(found.slots, slots.flatten(1))
    expected = grid.flatten(3).gather(3, slots.expand(len(grid), *slots.shape))
    if config.softmax:
        expected = expected.exp() / expected.exp().sum(dim=3, keepdim=True)
    torch.testing.assert_close(found.scores, expected.flatten(2), rtol=1e-12, atol=1e-12)


def v2_config(**changes: object) -> MemoryConfig:
    return small_config(**({"variant": VariantName.ULTRAMEM_V2, "pre_value_dim": 4} | changes))


@pytest.mark.parametrize("expansion", [1, 4])
@pytest.mark.parametrize("value_dim", [6, HIDDEN - 1, HIDDEN])
def test_ultramem_v2_is_ultramem_whose_rows_meet_the_input_twice(expansion: int, value_dim: int) -> None:
    """o = W^T V^T ((P W_pre x) * s) with s summed over the virtual copies of a row (arXiv 2508.18756, eq. 15)."""
    cores = 1 if value_dim == HIDDEN else 2
    config = v2_config(expansion=expansion, value_dim=value_dim, cores=cores)
    weights, x, found = run(config)
    first = small_config(expansion=expansion, value_dim=value_dim, cores=cores)
    own = reference_weight_shapes(first, HIDDEN)
    same = {name: weights[name] for name in own if name != "projection.weight"}
    if "projection.weight" in own:
        same["projection.weight"] = torch.zeros(own["projection.weight"], dtype=torch.float64)
    plain = apply(first, same, x)
    assert torch.equal(found.slots, plain.slots) and torch.equal(found.rows, plain.rows) and not found.blocks.any()
    N, T = config.num_rows, len(found.rows)
    inner_TN = (x.reshape(T, -1) @ weights["pre_values.weight"].T) @ weights["pre_values.table"].T
    dense_CTN = torch.zeros(cores, T, N, dtype=torch.float64)
    dense_CTN = dense_CTN.scatter_add(2, found.rows.expand(cores, -1, -1), plain.scores)
    slices = weights["table"].chunk(cores, dim=1)
    pooled = torch.cat([(dense_CTN[c] * inner_TN) @ slices[c] for c in range(cores)], dim=1)
    torch.testing.assert_close(found.pooled, pooled.unsqueeze(1), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.output.flatten(0, 1), pooled @ weights["projection.weight"].T)
    torch.testing.assert_close(found.output.flatten(0, 1), lookup_in_virtual_table(config, weights, found))


@pytest.mark.parametrize("expansion", [1, 4, 9])
@pytest.mark.parametrize("cores", [1, 2, 3])
def test_pooled_then_projected_equals_the_virtual_table(expansion: int, cores: int) -> None:
    config = small_config(expansion=expansion, cores=cores)
    weights, _, found = run(config)
    by_definition = lookup_in_virtual_table(config, weights, found)
    assert virtual_table(config, weights).shape == (cores, expansion * config.num_rows, HIDDEN)
    assert found.blocks.unique().numel() == expansion  # the case means something: every block was hit
    torch.testing.assert_close(found.output.flatten(0, 1), by_definition, rtol=1e-12, atol=1e-12)

    cotangent = torch.randn(by_definition.shape, dtype=torch.float64)
    names = list(weights)
    ours = torch.autograd.grad(
        (found.output.flatten(0, 1) * cotangent).sum(), list(weights.values()), retain_graph=True
    )
    theirs = torch.autograd.grad((by_definition * cotangent).sum(), list(weights.values()))
    for name, a, b in zip(names, ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11, msg=lambda text, name=name: f"{name}: {text}")


def test_no_expansion_and_no_shuffle_is_plain_pooling() -> None:
    config = small_config(expansion=1, cores=1)
    weights = random_weights(reference_weight_shapes(config, HIDDEN), 3, torch.float64)
    u, t = leading_singular_vectors(weights["core"])
    x = torch.randn(3, 2, HIDDEN, dtype=torch.float64)
    found = reference_memory_layer(
        config, weights, x, slot_to_address=lambda slots: (slots, torch.zeros_like(slots)), u=u, t=t
    )
    plain = torch.einsum("tk,tkv->tv", found.scores[0], weights["table"][found.slots])
    torch.testing.assert_close(found.pooled[:, 0], plain, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.output, (plain @ weights["projection.weight"].T).reshape(x.shape))


def test_equal_cores_weigh_every_slice_with_their_share_of_the_score() -> None:
    one, three = small_config(cores=1), small_config(cores=3)
    weights, x, whole = run(one)
    split = dict(weights) | {"core": (weights["core"] / 3).repeat(1, 3, 1, 1)}
    parts = apply(three, split, x)
    assert torch.equal(parts.slots, whole.slots)
    for c in range(3):
        torch.testing.assert_close(parts.scores[c], whole.scores[0] / 3, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(parts.pooled, whole.pooled / 3, rtol=1e-12, atol=1e-12)


def test_each_core_weighs_its_own_slice() -> None:
    config = small_config(cores=2)
    weights, _, found = run(config)
    without = weights["table"].detach().clone()
    without[:, 3:] = 0  # the second core's slice
    pooled = reference_pooling(without, found.rows, found.blocks, found.scores, num_blocks=4)
    torch.testing.assert_close(pooled[..., :3], found.pooled[..., :3])
    assert not pooled[..., 3:].any()
    louder = torch.stack([found.scores[0], 5 * found.scores[1]])
    pooled = reference_pooling(weights["table"], found.rows, found.blocks, louder, num_blocks=4)
    torch.testing.assert_close(pooled, torch.cat([found.pooled[..., :3], 5 * found.pooled[..., 3:]], dim=-1))


def test_rank_one_scores_are_products_of_row_and_column_scores() -> None:
    config = small_config(tucker_rank=1, key_dim=3, cores=1, expansion=1)
    weights, x, _ = run(config)
    weights["core"] = torch.ones(config.heads, 1, 1, 1, dtype=torch.float64)
    found = apply(config, weights, x)
    sides = side_scores(config, weights, x)[:, :, :, 0]
    slots = found.slots.reshape(-1, config.heads, config.top_m)
    rows = sides[:, :, 0].gather(2, slots // config.grid_side)
    columns = sides[:, :, 1].gather(2, slots % config.grid_side)
    torch.testing.assert_close(found.scores[0], (rows * columns).flatten(1), rtol=1e-12, atol=1e-12)


def by_hand(row_scores: list[float], column_scores: list[float], sign: float = 1.0, top_m: int = 2) -> ReferenceOutput:
    """One token, one head, rank 1, core 1; the keys are the scores, the query is 1."""
    config = small_config(
        keys_per_side=len(row_scores), top_m=top_m, heads=1, heads_per_query=1, key_dim=1, value_dim=1,
        tucker_rank=1, cores=1, expansion=1, query_conv_kernel=0, normalize_keys=False,
    )  # fmt: skip
    weights = {
        "query.weight": torch.ones(2, 1),
        "keys": torch.tensor([row_scores, column_scores]).reshape(1, 2, -1, 1, 1),
        "core": torch.ones(1, 1, 1, 1),
        "table": torch.arange(float(len(row_scores) ** 2)).unsqueeze(1),
    }
    ones = torch.full((1, 1), sign)
    x = torch.ones(1, 1, 1)
    return reference_memory_layer(
        config, weights, x, slot_to_address=lambda slots: (slots, torch.zeros_like(slots)), u=ones, t=ones
    )


def test_products_by_hand() -> None:
    found = by_hand([3.0, 1.0, 2.0], [0.5, 4.0, 1.0])
    # rows 0 and 2, columns 1 and 2; products 12, 3, 8, 2 of slots 1, 2, 7, 8
    assert found.slots.tolist() == [[1, 7]]
    assert found.scores.tolist() == [[[12.0, 8.0]]]
    assert found.output.item() == 12 * 1 + 8 * 7
    assert found.margin == 0.5  # column 2 against column 0
    # kept 100 and 90, dropped 85; rows and columns are further apart
    assert by_hand([10.0, 9.0, 0.0], [10.0, 8.5, 0.0]).margin == 5.0
    assert by_hand([2.0, 1.0], [2.0, 1.0]).margin == 0.0  # 2 and 2: the second was kept, the third dropped


def test_two_very_negative_sides_are_no_candidates() -> None:
    """Their product is the largest of the grid; the second stage never sees it, unless (u, t) change sign."""
    assert by_hand([3.0, 2.0, -9.0], [3.0, 2.0, -9.0]).slots.tolist() == [[0, 1]]
    assert by_hand([3.0, 2.0, -9.0], [3.0, 2.0, -9.0], sign=-1.0).slots.tolist() == [[8, 4]]


def test_ties_go_to_the_smaller_slot() -> None:
    assert by_hand([1.0, 1.0, 1.0], [1.0, 1.0, 1.0]).slots.tolist() == [[0, 1]]
    # slot 4 has 8; slots 1 = (0, 1) and 3 = (1, 0) have 4 each, and row 1 ranks before row 0
    assert by_hand([2.0, 4.0, 0.0], [1.0, 2.0, 0.0], top_m=3).slots.tolist() == [[4, 1, 3]]
    assert by_hand([1.0, 1.0, 1.0], [1.0, 1.0, 1.0]).margin == 0.0


def test_a_product_ranks_otherwise_than_a_sum() -> None:
    rows, columns = [10.0, 6.0, 0.0], [1.0, 5.0, 0.0]
    product = by_hand(rows, columns, top_m=3)
    config = small_config(
        variant=VariantName.PKM, keys_per_side=3, top_m=3, heads=1, heads_per_query=1, key_dim=1, expansion=1,
        query_conv_kernel=0, normalize_keys=False, value_dim=1,
    )  # fmt: skip
    keys = torch.tensor([rows, columns]).reshape(1, 2, 3, 1, 1)
    weights = {"query.weight": torch.ones(2, 1), "keys": keys, "table": torch.ones(9, 1)}
    total = reference_memory_layer(
        config, weights, torch.ones(1, 1, 1), slot_to_address=lambda slots: (slots, torch.zeros_like(slots))
    )
    assert product.slots.tolist() == [[1, 4, 0]]  # 50, 30, 10
    assert total.slots.tolist() == [[1, 0, 4]]  # 15, 11, 11: a tie


def test_a_row_that_a_token_picks_twice_counts_twice() -> None:
    config = small_config(expansion=1, cores=1)
    weights, x, _ = run(config)
    u, t = leading_singular_vectors(weights["core"])
    same = reference_memory_layer(
        config, weights, x, slot_to_address=lambda s: (torch.full_like(s, 2), torch.zeros_like(s)), u=u, t=t
    )
    torch.testing.assert_close(same.pooled[:, 0], same.scores[0].sum(1, keepdim=True) * weights["table"][2])
    (gradient,) = torch.autograd.grad(same.pooled.sum(), weights["table"], retain_graph=True)
    torch.testing.assert_close(gradient[2], same.scores.sum().expand(6))
    assert not gradient[[0, 1, *range(3, 25)]].any()
    # two equal heads pick the same rows: twice the output of one
    twin = {name: w.clone() for name, w in weights.items()}
    for name in ("keys", "core"):
        twin[name] = torch.stack([twin[name][0]] * 4)
    twin["query.weight"] = twin["query.weight"][:12].repeat(2, 1)
    alone = {**twin, "keys": twin["keys"][:1], "core": twin["core"][:1], "query.weight": twin["query.weight"][:12]}
    four = apply(config, twin, x)
    one = apply(small_config(expansion=1, cores=1, heads=1, heads_per_query=1), alone, x)
    torch.testing.assert_close(four.output, 4 * one.output, rtol=1e-12, atol=1e-12)


def test_slots_lie_in_the_grid_and_addresses_are_a_bijection() -> None:
    config = small_config(expansion=9)
    _, _, found = run(config)
    rows, blocks = shuffled_addresses(config, 0)
    assert torch.equal((blocks * config.num_rows + rows).sort().values, torch.arange(9 * 25))
    assert found.slots.min() >= 0 and found.slots.max() < 9 * 25
    assert torch.equal(found.rows, rows[found.slots]) and torch.equal(found.blocks, blocks[found.slots])
    assert found.slots.shape == (6, config.picks)


def test_heads_share_a_query_in_pairs() -> None:
    config = small_config()
    weights, x, before = run(config)
    changed = weights["query.weight"].detach().clone()
    changed[12:] = torch.randn(12, HIDDEN, dtype=torch.float64)  # the second query: heads 2 and 3
    after = apply(config, weights | {"query.weight": changed}, x)
    assert torch.equal(after.slots[:, :6], before.slots[:, :6])
    assert torch.equal(after.scores[..., :6], before.scores[..., :6])
    for head in (2, 3):
        picks = slice(3 * head, 3 * head + 3)
        assert not torch.equal(after.scores[..., picks], before.scores[..., picks])


def test_a_token_sees_the_past_of_its_own_sequence_only() -> None:
    config = small_config(query_conv_kernel=3)
    weights, x, before = run(config, positions=5)
    changed = x.detach().clone()
    changed[1, 0] += 1.0
    difference = (apply(config, weights, changed).output - before.output).abs().amax(dim=2)
    assert (difference > 0).tolist() == [[False, False], [True, False], [True, False], [True, False], [False, False]]


def test_norms_take_the_size_out_of_queries_and_keys() -> None:
    config = small_config()
    weights, x, before = run(config)
    loud, louder = (
        apply(config, weights | {name: factor * weights[name] for name in ("keys", "query.weight")}, x)
        for factor in (1e3, 1e6)  # so large that epsilon plays no part
    )
    torch.testing.assert_close(louder.scores, loud.scores, rtol=1e-6, atol=1e-6)
    doubled = weights | {"query_norm.weight": 2 * weights["query_norm.weight"]}
    torch.testing.assert_close(apply(config, doubled, x).scores, 4 * before.scores, rtol=1e-12, atol=1e-12)


def test_gradients_of_the_whole_layer() -> None:
    config = small_config(
        keys_per_side=3, top_m=2, heads=2, key_dim=4, value_dim=2, query_conv_kernel=2, expansion=4, cores=2
    )
    weights, x, found = run(config, positions=2, sequences=1, seed=1)
    assert found.margin > 1e-3  # the finite differences below do not change the choice of slots
    u, t = leading_singular_vectors(weights["core"])
    address = shuffled_addresses(config, 1)

    def layer(x: Tensor, *values: Tensor) -> Tensor:
        named = dict(zip(weights, values, strict=True))
        return reference_memory_layer(config, named, x, slot_to_address=address, u=u, t=t).output

    assert check_gradients(layer, (x, *weights.values()))


def test_lower_precision_weights_get_their_gradients() -> None:
    config = small_config()
    weights = random_weights(reference_weight_shapes(config, HIDDEN), 0, torch.bfloat16)
    x = torch.randn(3, 2, HIDDEN, dtype=torch.bfloat16, requires_grad=True)
    found = apply(config, weights, x)
    assert found.output.dtype is torch.float64
    found.output.sum().backward()
    for weight in (x, *weights.values()):
        assert weight.grad is not None and weight.grad.dtype is torch.bfloat16 and weight.grad.abs().sum() > 0


def test_wrong_weights_are_named() -> None:
    config = small_config()
    weights = random_weights(reference_weight_shapes(config, HIDDEN), 0, torch.float64)
    weights["table"] = weights["table"][:, :3]
    weights["extra"] = weights.pop("core")
    with pytest.raises(ValueError) as caught:
        reference_memory_layer(
            config, weights, torch.zeros(1, 1, HIDDEN), slot_to_address=shuffled_addresses(config, 0),
            u=torch.ones(4, 2), t=torch.ones(4, 2),
        )  # fmt: skip
    assert "core is missing, needs (4, 2, 2, 2)" in str(caught.value)
    assert "extra is (4, 2, 2, 2), needs nothing" in str(caught.value)
    assert "table is (25, 3), needs (25, 6)" in str(caught.value)


# The loss on the core


def core_with(*singular_values: float) -> Tensor:
    """[1, 2, R, R]: two cores whose sum has these singular values, between random rotations."""
    left, _ = torch.linalg.qr(torch.randn(len(singular_values), len(singular_values), dtype=torch.float64))
    right, _ = torch.linalg.qr(torch.randn(len(singular_values), len(singular_values), dtype=torch.float64))
    total = left @ torch.diag(torch.tensor(singular_values, dtype=torch.float64)) @ right
    first = torch.randn_like(total)
    return torch.stack([first, total - first]).unsqueeze(0)


def test_auxiliary_loss_by_hand() -> None:
    assert auxiliary_loss(core_with(2.0, 0.15 - 1e-9), 1e-3, 0.15).item() == 0.0
    assert auxiliary_loss(core_with(0.1, 0.05), 1e-3, 0.15).item() == 0.0
    torch.testing.assert_close(
        auxiliary_loss(core_with(2.0, 0.65), 1e-3, 0.15), torch.tensor(1e-3 * 0.25, dtype=torch.float64)
    )
    # rank 3: half of (0.85^2 + 0.35^2); heads add
    heads = torch.cat([core_with(3.0, 1.0, 0.5), core_with(3.0, 0.1, 0.05)])
    expected = torch.tensor(1e-3 / 2 * (0.85**2 + 0.35**2), dtype=torch.float64)
    torch.testing.assert_close(auxiliary_loss(heads, 1e-3, 0.15), expected)
    assert auxiliary_loss(torch.ones(2, 3, 1, 1), 1e-3, 0.15).item() == 0.0


def test_auxiliary_loss_leaves_the_leading_singular_value_alone() -> None:
    core = core_with(2.0, 0.65).requires_grad_()
    assert check_gradients(lambda core: auxiliary_loss(core, 1.0, 0.15), (core,))
    (gradient,) = torch.autograd.grad(auxiliary_loss(core, 1.0, 0.15), core)
    left, values, right = torch.linalg.svd(core.detach().sum(1)[0])
    torch.testing.assert_close(gradient[0, 0], 2 * (values[1] - 0.15) * torch.outer(left[:, 1], right[1]))
    assert torch.equal(gradient[0, 0], gradient[0, 1])


def test_auxiliary_loss_of_uniform_cores() -> None:
    """Mean of (sigma_2 - 0.15)_+^2 over sums of two cores U(0, 1): 0.082."""
    cores = torch.rand(4000, 2, 2, 2, dtype=torch.float64)
    assert auxiliary_loss(cores, 1.0, 0.15).item() / 4000 == pytest.approx(0.082, abs=0.008)


def test_leading_vectors_rebuild_the_core_and_have_a_sign() -> None:
    core = torch.cat([core_with(2.0, 0.3, 0.1), -core_with(2.0, 0.3, 0.1)])
    u, t = leading_singular_vectors(core)
    assert (u.sum(dim=1) >= 0).all()
    leading = torch.einsum("hr,hrq,hq->h", u, core.sum(1), t)
    torch.testing.assert_close(leading, torch.tensor([2.0, 2.0], dtype=torch.float64))


# Product keys


@pytest.mark.parametrize("value_dim", [4, HIDDEN], ids=["half-width", "full-width"])
def test_product_keys_find_the_exhaustive_top_m(value_dim: int) -> None:
    """As they were published: softmax weights, own queries, no norm, no expansion."""
    config = small_config(
        variant=VariantName.PKM, softmax=True, heads=3, heads_per_query=1, value_dim=value_dim, expansion=1,
        query_conv_kernel=0, normalize_keys=False,
    )  # fmt: skip
    weights = random_weights(reference_weight_shapes(config, HIDDEN), 0, torch.float64)
    assert ("projection.weight" in weights) is (value_dim != HIDDEN)
    x = torch.randn(3, 2, HIDDEN, dtype=torch.float64)
    found = reference_memory_layer(config, weights, x, slot_to_address=lambda slots: (slots, torch.zeros_like(slots)))

    queries = (x @ weights["query.weight"].T).reshape(6, 3, 2, 6)
    sides = torch.einsum("thca,hcsa->thcs", queries, weights["keys"].squeeze(3))
    every_sum = (sides[:, :, 0].unsqueeze(3) + sides[:, :, 1].unsqueeze(2)).flatten(2)
    best, slots = every_sum.topk(3)
    assert torch.equal(found.rows, slots.flatten(1))
    assert torch.equal(found.slots, found.rows) and not found.blocks.any()
    torch.testing.assert_close(found.scores[0], best.softmax(dim=2).flatten(1))
    torch.testing.assert_close(found.scores[0].sum(dim=1), torch.full((6,), 3.0, dtype=torch.float64))

    output = torch.einsum("thm,thmv->tv", best.softmax(dim=2), weights["table"][slots])
    if value_dim != HIDDEN:
        output = output @ weights["projection.weight"].T
    torch.testing.assert_close(found.output.flatten(0, 1), output, rtol=1e-12, atol=1e-12)


def test_product_keys_may_have_an_expansion() -> None:
    config = small_config(variant=VariantName.PKM)
    weights, _, found = run(config)
    by_definition = lookup_in_virtual_table(config, weights, found)
    assert virtual_table(config, weights).shape == (1, 4 * 25, HIDDEN)
    torch.testing.assert_close(found.output.flatten(0, 1), by_definition, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("variant", [VariantName.PKM, VariantName.ULTRAMEM_V2])
@pytest.mark.parametrize("softmax", [False, True], ids=["scores", "softmax"])
def test_gradients_of_the_other_variants(variant: VariantName, softmax: bool) -> None:
    config = small_config(
        variant=variant, keys_per_side=3, top_m=2, heads=2, key_dim=4, value_dim=2, softmax=softmax,
        query_conv_kernel=2, pre_value_dim=2 if variant is VariantName.ULTRAMEM_V2 else 0,
    )  # fmt: skip
    weights, x, found = run(config, positions=2, sequences=1, seed=2)
    assert found.margin > 1e-3  # the finite differences below do not change the choice of slots
    u, t = leading_singular_vectors(weights["core"]) if "core" in weights else (None, None)
    address = shuffled_addresses(config, 2)

    def layer(x: Tensor, *values: Tensor) -> Tensor:
        named = dict(zip(weights, values, strict=True))
        return reference_memory_layer(config, named, x, slot_to_address=address, u=u, t=t).output

    assert check_gradients(layer, (x, *weights.values()))
