"""Every Triton kernel, interpreted on a CPU, against its reference. Small: a program takes 15 ms."""

import pytest
import torch

from ultramem_kernels.arguments import ArgumentError
from ultramem_kernels.candidates import best_candidates_reference
from ultramem_kernels.grid_top_m import grid_top_m_reference
from ultramem_kernels.index_plan import CHUNK_PICKS, make_plan, sort_picks
from ultramem_kernels.pool import group_of, pool_groups_reference, pool_reference, torch_path
from ultramem_megatron.testing.tolerances import assert_agrees

pytestmark = pytest.mark.usefixtures("interpreter")
DTYPES = [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("index_type", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("tokens", "picks", "width", "blocks", "cores"),
    [
        pytest.param(3, 19, 48, 4, 2, id="rows repeat, slices of 24"),
        pytest.param(2, 5, 72, 3, 1, id="two tiles, three blocks"),
        pytest.param(2, 11, 256, 4, 1, id="a warp reads one row, or half of one"),
        pytest.param(2, 7, 16, 9, 2, id="more blocks than masks"),
        pytest.param(0, 4, 16, 1, 1, id="no tokens"),
    ],
)
def test_pool(
    tokens: int, picks: int, width: int, blocks: int, cores: int, dtype: torch.dtype, index_type: torch.dtype
) -> None:
    from ultramem_kernels.pool import triton_kernel

    table, rows = torch.randn(11, width).to(dtype), torch.randint(11, (tokens, picks), dtype=index_type)
    chosen = torch.randint(blocks, (tokens, picks), dtype=torch.uint8)
    scores = torch.randn(cores, tokens, picks).to(dtype)
    found = triton_kernel.pool(table, rows, chosen, scores, blocks)
    expected = pool_reference(table.double(), rows, chosen, scores.double(), blocks)
    assert found.dtype is dtype
    assert_agrees(found, expected, computed_in=dtype)


def test_pool_groups() -> None:
    from ultramem_kernels.pool import triton_kernel

    table, rows = torch.randn(9, 24), torch.randint(9, (25,), dtype=torch.int32)
    groups = torch.tensor([0] * 18 + [2] * 3 + [3] * 4)
    scores = torch.randn(25, 2).t()
    found = triton_kernel.pool_groups(table, rows, groups, scores, 5)
    assert_agrees(found, pool_groups_reference(table, rows, groups, scores, 5).double(), computed_in=torch.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("wanted", ["both", "table", "scores"])
def test_gradients(dtype: torch.dtype, wanted: str) -> None:
    """One row is in three chunks, one in exactly one, others are picked once or not at all."""
    from ultramem_kernels.pool import triton_gradients

    rows = torch.cat([torch.full((2 * CHUNK_PICKS + 3,), 4), torch.full((CHUNK_PICKS,), 1), torch.tensor([0, 6, 8, 6])])
    rows = rows[torch.randperm(len(rows))].int()
    picks, width = len(rows), 24
    chosen = torch.randint(2, (picks, 1), dtype=torch.uint8)
    inputs = (
        torch.randn(2 * picks, width).to(dtype),
        torch.randn(9, width).to(dtype),
        rows,
        group_of(chosen, 2),
        torch.randn(2, picks).to(dtype),
    )
    into = torch.full((9, width), 0.5) if wanted != "scores" else None
    scores_grad = torch.full((2, picks), torch.nan) if wanted != "table" else None
    triton_gradients.backward(*inputs, into, scores_grad, make_plan(sort_picks(rows), 9) if wanted == "both" else None)
    expected_into, expected_scores = torch.full((9, width), 0.5).double(), torch.empty(2, picks).double()
    grad, table, _, group, scores = inputs
    torch_path.backward(grad.double(), table.double(), rows, group, scores.double(), expected_into, expected_scores)
    if into is not None:
        assert_agrees(into, expected_into, computed_in=torch.float32, summed_terms=2 * CHUNK_PICKS)
    if scores_grad is not None:
        assert_agrees(scores_grad, expected_scores, computed_in=torch.float32, summed_terms=width)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("planned", [False, True])
def test_added_rows(dtype: torch.dtype, planned: bool) -> None:
    """One row comes in three chunks, one once; into a gradient that is there."""
    from ultramem_kernels.pool import triton_gradients

    rows = torch.cat([torch.full((2 * CHUNK_PICKS + 3,), 4), torch.tensor([0, 6, 8, 6])])
    rows = rows[torch.randperm(len(rows))]
    given, into = torch.randn(len(rows), 20).to(dtype), torch.full((9, 20), 0.5)
    expected = into.double().index_add(0, rows, given.double())
    triton_gradients.add_rows(into, rows, given, make_plan(sort_picks(rows), 9) if planned else None)
    assert_agrees(into, expected, computed_in=torch.float32, summed_terms=2 * CHUNK_PICKS)


def outlier(shape: tuple[int, ...]) -> torch.Tensor:
    x = torch.randn(shape)
    x[..., 77] = 1e30
    return x


SCORES = {
    "random": torch.randn,
    "all equal": torch.zeros,
    "few levels": lambda shape: torch.randint(-1, 2, shape).float(),
    "all negative": lambda shape: -torch.rand(shape),
    "an outlier": outlier,
    "infinite": lambda shape: torch.randn(shape).masked_fill(torch.rand(shape) < 0.95, -torch.inf),
}


@pytest.mark.parametrize("m", [1, 13, 150])
@pytest.mark.parametrize("kind", SCORES)
def test_candidates(kind: str, m: int) -> None:
    from ultramem_kernels.candidates import triton_kernel

    scores, direction = SCORES[kind]((2, 1, 3, 150)), torch.tensor([[1.0], [0.5]])
    found = triton_kernel.best_candidates(scores, direction, m)
    assert torch.equal(found, best_candidates_reference(scores, direction, m).sort(dim=2).values)


@pytest.mark.parametrize("slab", [150, 27], ids=["one slab", "slabs, three times over"])
@pytest.mark.parametrize("equal", [False, True], ids=["random", "all equal"])
def test_slabs_of_candidates(equal: bool, slab: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from ultramem_kernels.candidates import triton_kernel

    monkeypatch.setattr(triton_kernel, "SLAB_KEYS", slab)
    tokens = 3 if slab == 150 else 1  # each slab of each token and head is a program
    scores, direction = torch.randn(2, 2, tokens, 150), torch.randn(2, 2)
    if equal:
        scores.zero_()
    found = triton_kernel.best_candidates(scores, direction, 13)
    assert torch.equal(found, best_candidates_reference(scores, direction, 13).sort(dim=2).values)


def test_slabs_must_leave_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    from ultramem_kernels.candidates import triton_kernel

    monkeypatch.setattr(triton_kernel, "SLAB_KEYS", 27)
    with pytest.raises(ArgumentError, match="m is 14; expected up to 13 on a CUDA device, of more than 27 keys"):
        triton_kernel.best_candidates(torch.randn(1, 1, 1, 28), torch.ones(1, 1), 14)


@pytest.mark.parametrize(
    ("components", "slab_places"), [(1, 8192), (2, 8192), (2, 36)], ids=["one component", "two", "slabs of four rows"]
)
def test_grid(components: int, slab_places: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from ultramem_kernels.grid_top_m import triton_kernel

    monkeypatch.setattr(triton_kernel, "SLAB_PLACES", slab_places)
    rows, columns = torch.randn(2, 3, 2, components, 9).unbind(0)
    core = torch.randn(2, components, components)
    found = triton_kernel.grid_top_m(rows, columns, core, 11)
    assert torch.equal(found, grid_top_m_reference(rows, columns, core, 11).sort(dim=2).values)
