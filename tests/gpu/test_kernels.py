"""Every Triton kernel on the GPU against its reference in float64, and the same bits twice."""

# Letters: N rows of the table, V value dimension, T tokens, K picks per token, E blocks, h score cores.

import pytest
import torch

from ultramem_kernels.candidates import best_candidates, best_candidates_reference
from ultramem_kernels.grid_top_m import Addresses, best_slots, best_slots_reference, grid_top_m, grid_top_m_reference
from ultramem_kernels.index_plan import CHUNK_PICKS, make_plan, sort_picks
from ultramem_kernels.pool import (
    add_rows,
    group_of,
    pool,
    pool_backward,
    pool_groups,
    pool_groups_reference,
    pool_reference,
    torch_path,
)
from ultramem_kernels.products import multiply_rows, multiply_rows_reference
from ultramem_kernels.table_update import AdamW, update_table, update_table_reference
from ultramem_megatron.testing.tolerances import assert_agrees

pytestmark = pytest.mark.gpu
DTYPES = [torch.float32, torch.bfloat16]
TOKENS, PICKS, ROWS = 33, 37, 1000


def draw(dtype: torch.dtype, width: int, blocks: int, cores: int) -> tuple[torch.Tensor, ...]:
    """Half of the picks fall on three rows, whose runs have many chunks."""
    rows = torch.randint(ROWS, (TOKENS, PICKS), dtype=torch.int32)
    rows[:, ::2] %= 3
    return (
        torch.randn(ROWS, width).to(dtype),
        rows,
        torch.randint(blocks, (TOKENS, PICKS), dtype=torch.uint8),
        torch.randn(cores, TOKENS, PICKS).to(dtype),
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("width", "blocks", "cores"), [(48, 4, 2), (384, 4, 2), (512, 1, 1), (1024, 4, 2), (72, 3, 1), (64, 12, 4)]
)
def test_pool_and_its_gradients(device: torch.device, dtype: torch.dtype, width: int, blocks: int, cores: int) -> None:
    inputs = draw(dtype, width, blocks, cores)
    table, rows, chosen, scores = (x.to(device) for x in inputs)
    wide = (inputs[0].double(), inputs[1], inputs[2], inputs[3].double())
    found = pool(table, rows, chosen, scores, blocks)
    assert_agrees(found, pool_reference(*wide, blocks), computed_in=dtype, summed_terms=PICKS)
    assert torch.equal(found, pool(table, rows, chosen, scores, blocks))

    grad = torch.randn(TOKENS * blocks, width).to(dtype)
    given = (grad.to(device), table, rows.view(-1), group_of(chosen, blocks), scores.flatten(1))
    results = []
    for _ in range(2):
        into = torch.full((ROWS, width), 0.5, device=device)
        results.append((into, pool_backward(*given, table_grad_NV=into, scores_need_grad=True)))
    assert torch.equal(results[0][0], results[1][0])
    expected = torch.full((ROWS, width), 0.5).double()
    expected_scores = torch.empty(cores, TOKENS * PICKS).double()
    flat = (inputs[1].view(-1), group_of(inputs[2], blocks), wide[3].flatten(1))
    torch_path.backward(grad.double(), wide[0], *flat, expected, expected_scores)
    assert_agrees(results[0][0], expected, computed_in=torch.float32, summed_terms=TOKENS * PICKS)
    assert results[0][1] is not None and results[1][1] is not None
    assert torch.equal(results[0][1], results[1][1])
    assert_agrees(results[0][1], expected_scores, computed_in=dtype, summed_terms=width)


def test_pool_groups(device: torch.device) -> None:
    table, rows, _, scores = draw(torch.bfloat16, 96, 1, 2)
    groups = torch.randint(50, (TOKENS * PICKS,)).sort().values
    given = (table, rows.view(-1), groups, scores.flatten(1))
    found = pool_groups(*(x.to(device) for x in given), 60)
    expected = pool_groups_reference(table.double(), *given[1:3], given[3].double(), 60)
    assert_agrees(found, expected, computed_in=torch.bfloat16, summed_terms=TOKENS)


@pytest.mark.parametrize(("side", "m"), [(96, 8), (2200, 16), (3578, 42), (40_000, 32)])
def test_candidates(device: torch.device, side: int, m: int) -> None:
    # eighths: projections are exact, and many are equal
    scores, direction = torch.randint(-40, 40, (4, 2, 9, side)) / 8, torch.tensor([[1.0, 0.5]]).expand(4, 2)
    found = best_candidates(scores.to(device), direction.to(device), m)
    expected = best_candidates_reference(scores, direction, m)
    assert torch.equal(found.cpu().sort(dim=2).values, expected.sort(dim=2).values)


@pytest.mark.parametrize("candidates", [8, 42, 80, 128])
def test_grid(device: torch.device, candidates: int) -> None:
    rows, columns = (torch.randint(-20, 20, (2, 7, 2, 2, candidates)) / 4).unbind(0)
    core = torch.tensor([[1.0, 0.5], [0.25, 2.0]]).expand(2, 2, 2)
    found = grid_top_m(rows.to(device), columns.to(device), core.to(device), candidates)
    expected = grid_top_m_reference(rows, columns, core, candidates)
    assert torch.equal(found.cpu().sort(dim=2).values, expected.sort(dim=2).values)


@pytest.mark.parametrize("candidates", [8, 42, 80, 128])
def test_slots_and_their_gradients(device: torch.device, candidates: int) -> None:
    """Rows, blocks, scores; the same bits twice."""
    sides = torch.randint(-20, 20, (7, 2, 2, 2, candidates)) / 4
    index = torch.stack([torch.randperm(200)[:candidates] for _ in range(28)]).view(7, 2, 2, candidates)
    cores = torch.tensor([[[1.0, 0.5], [0.25, 2.0]], [[0.5, 0.0], [1.0, 0.25]]]).expand(2, 2, 2, 2).contiguous()
    offsets = torch.randint(200, (4, 200), dtype=torch.int32)
    grad = torch.randn(2, 7, 2, candidates)
    results = []
    for place in (device, device, torch.device("cpu")):
        leaves = [x.detach().to(place).requires_grad_() for x in (sides, cores)]
        addresses = Addresses(200, 10_000, offsets.to(place))
        rows, blocks, scores = best_slots(leaves[0], index.to(place), leaves[1], candidates, addresses)
        order = (blocks.long() * 10_000 + rows).argsort(dim=2)
        scores.gather(3, order.expand_as(scores)).backward(grad.to(place))
        results.append([x.gather(x.dim() - 1, order.expand_as(x)).cpu() for x in (rows, blocks, scores)])
        results[-1] += [leaf.grad.cpu() for leaf in leaves]  # type: ignore[union-attr]
    for found, again, expected in zip(*results, strict=True):
        assert torch.equal(found, again)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    rows, blocks, _ = best_slots_reference(sides, index, cores, candidates, Addresses(200, 10_000, offsets))
    address = (blocks.long() * 10_000 + rows).sort(dim=2).values
    assert torch.equal(results[0][1].long() * 10_000 + results[0][0], address)


@pytest.mark.parametrize("touched_only", [False, True])
@pytest.mark.parametrize("moments", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_update(device: torch.device, dtype: torch.dtype, moments: torch.dtype, touched_only: bool) -> None:
    settings = AdamW(learning_rate=0.01, beta1=0.9, beta2=0.99, epsilon=1e-8, weight_decay=0.1)
    shape = (37, 40)
    grad = torch.randn(shape) * (torch.rand(37, 1) < 0.3)
    expected = [torch.zeros(shape, dtype=dtype), torch.rand(shape), *(torch.rand(2, *shape).to(moments)), grad]
    given = [x.to(device) for x in expected]
    update_table(*given, 3, settings, touched_only=touched_only)
    update_table_reference(*expected, 3, settings, touched_only=touched_only)
    for found, wanted in zip(given[1:], expected[1:], strict=True):
        tolerance = 1e-5 if wanted.dtype is torch.float32 else 2**-7
        torch.testing.assert_close(found.cpu(), wanted, rtol=tolerance, atol=1e-6)
    touched = (grad != 0).to(device) if touched_only else torch.ones(shape, dtype=torch.bool, device=device)
    assert torch.equal(given[0][touched], given[1].to(dtype)[touched]), "the master, rounded once"
    assert given[4].count_nonzero() == 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_are_added_by_a_plan_with_the_same_bits(device: torch.device, dtype: torch.dtype) -> None:
    """Half of them to three rows, with a plan made ahead and without."""
    rows = draw(dtype, 8, 1, 1)[1].view(-1)
    given, into = torch.randn(len(rows), 72).to(dtype), torch.full((ROWS, 72), 0.5)
    expected = into.double().index_add(0, rows, given.double())
    found = []
    for planned in (True, False):
        target, there = into.to(device, copy=True), rows.to(device)
        add_rows(target, there, given.to(device), make_plan(sort_picks(there), ROWS) if planned else None)
        found.append(target)
    assert torch.equal(*found)
    assert_agrees(found[0], expected, computed_in=torch.float32, summed_terms=4 * CHUNK_PICKS)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [72, 256, 1024])
def test_products_and_their_gradients(device: torch.device, dtype: torch.dtype, width: int) -> None:
    table, rows, _, _ = draw(dtype, width, 1, 1)
    vectors, cotangent = torch.randn(TOKENS, width).to(dtype), torch.randn(TOKENS, PICKS)
    here = [x.double().requires_grad_() for x in (table, vectors)]
    there = [x.to(device).requires_grad_() for x in (table, vectors)]
    expected = multiply_rows_reference(here[0], rows, here[1])
    found = multiply_rows(there[0], rows.to(device), there[1])
    assert_agrees(found, expected.detach(), computed_in=torch.float32, summed_terms=width)
    expected.backward(cotangent.double())
    found.backward(cotangent.to(device))
    for x, oracle in zip(there, here, strict=True):
        assert x.grad is not None and oracle.grad is not None
        assert_agrees(x.grad, oracle.grad, computed_in=dtype, summed_terms=TOKENS * PICKS)
