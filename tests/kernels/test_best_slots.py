"""Stage 2 as a whole: rows, blocks and scores of the picks, and the gradient, on CPUs and by the Triton kernels."""

import pytest
import torch
from torch import Tensor

from ultramem_kernels.arguments import ArgumentError
from ultramem_kernels.grid_top_m import Addresses, best_slots, best_slots_reference, torch_path
from ultramem_megatron.testing.gradients import check_gradients
from ultramem_megatron.testing.tolerances import assert_agrees

TOKENS, HEADS, CANDIDATES, SIDE, PICKS = 3, 2, 9, 12, 11
Inputs = tuple[Tensor, Tensor, Tensor]


def draw(components: int, cores: int, dtype: torch.dtype = torch.float32) -> Inputs:
    """Scores of both sides, distinct keys, cores."""
    keys = torch.stack([torch.randperm(SIDE)[:CANDIDATES] for _ in range(TOKENS * HEADS * 2)])
    return (
        torch.randn(TOKENS, HEADS, 2, components, CANDIDATES, dtype=dtype),
        keys.view(TOKENS, HEADS, 2, CANDIDATES),
        torch.randn(HEADS, cores, components, components, dtype=dtype),
    )


def shuffled(*, one_block: bool = False) -> Addresses:
    """Four blocks of 36 rows."""
    return Addresses(SIDE, 36, torch.randint(SIDE, (4, SIDE), dtype=torch.int32), one_block)


PLAIN = Addresses(SIDE, SIDE * SIDE)


def in_order(found: tuple[Tensor, Tensor, Tensor], num_rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sorted by row and block: devices have other orders."""
    rows, blocks, scores = found
    order = (blocks.long() * num_rows + rows).argsort(dim=2)
    return rows.gather(2, order), blocks.gather(2, order), scores.gather(3, order.expand_as(scores))


def check(found: tuple[Tensor, Tensor, Tensor], inputs: Inputs, addresses: Addresses) -> None:
    expected = best_slots_reference(*inputs, PICKS, addresses)
    assert [x.dtype for x in found] == [x.dtype for x in expected] == [torch.int32, torch.uint8, torch.float32]
    if addresses.one_block:  # a row may be picked twice, in what would be two blocks
        assert not found[1].any()
        assert torch.equal(found[0].sort(dim=2).values, expected[0].sort(dim=2).values)
        found, expected = ((x[0], x[1], x[2].sort(dim=3).values) for x in (found, expected))
        assert_agrees(found[2], expected[2].double(), computed_in=torch.float32)
        return
    found, expected = (in_order(x, addresses.num_rows) for x in (found, expected))
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
    assert_agrees(found[2], expected[2].double(), computed_in=torch.float32)


ADDRESSES = [
    pytest.param(lambda: PLAIN, id="plain"),
    pytest.param(shuffled, id="shuffled"),
    pytest.param(lambda: shuffled(one_block=True), id="one block"),
]


@pytest.mark.parametrize("addresses", ADDRESSES)
@pytest.mark.parametrize(("components", "cores"), [(1, 1), (2, 2), (3, 2)])
def test_picks_are_those_of_the_reference(components: int, cores: int, addresses: object) -> None:
    inputs, where = draw(components, cores), addresses()
    check(best_slots(*inputs, PICKS, where), inputs, where)


@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize("slab_places", [8192, 36], ids=["one slab", "slabs of four rows"])
@pytest.mark.parametrize("addresses", ADDRESSES)
@pytest.mark.parametrize(("components", "cores"), [(1, 1), (2, 2)])
def test_kernels_pick_the_same(
    components: int, cores: int, addresses: object, slab_places: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ultramem_kernels.grid_top_m import triton_kernel

    monkeypatch.setattr(triton_kernel, "SLAB_PLACES", slab_places)
    inputs, where = draw(components, cores), addresses()
    scores, rows, blocks, _ = triton_kernel.best_slots(*inputs, PICKS, where)
    check((rows, blocks, scores), inputs, where)


def test_a_tie_goes_to_the_smaller_place() -> None:
    sides, index, cores = (
        torch.zeros(1, 1, 2, 1, 4),
        torch.arange(4).expand(1, 1, 2, 4).contiguous(),
        torch.ones(1, 1, 1, 1),
    )
    rows, _, scores = best_slots(sides, index, cores, 5, Addresses(4, 16))
    assert sorted(rows.flatten().tolist()) == [0, 1, 2, 3, 4]
    assert not scores.any()


@pytest.mark.parametrize(("components", "cores"), [(1, 1), (2, 3)])
def test_gradients_are_those_of_finite_differences(components: int, cores: int) -> None:
    sides, index, matrices = draw(components, cores, torch.float64)

    def scores(sides: Tensor, matrices: Tensor) -> Tensor:
        return best_slots(sides, index, matrices, PICKS, PLAIN)[2]

    assert check_gradients(scores, (sides.requires_grad_(), matrices.requires_grad_()))


@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize(("components", "cores", "picks"), [(1, 1, 5), (2, 2, 19), (3, 1, 16)])
def test_kernels_have_the_same_gradients(
    components: int, cores: int, picks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In tiles of four candidates; most candidates are in several picks, some in none."""
    from ultramem_kernels.grid_top_m import triton_kernel

    monkeypatch.setattr(triton_kernel, "CANDIDATES_AT_A_TIME", 4)
    sides, _, matrices = draw(components, cores)
    places = torch.stack([torch.randperm(CANDIDATES**2)[:picks] for _ in range(TOKENS * HEADS)])
    given = (torch.randn(cores, TOKENS, HEADS, picks), sides, matrices, places.view(TOKENS, HEADS, picks).int())
    found = triton_kernel.best_slots_backward(*given)
    expected = torch_path.best_slots_backward(*(x.double() if x.is_floating_point() else x for x in given))
    for gradient, wanted in zip(found, expected, strict=True):
        assert gradient.shape == wanted.shape
        assert_agrees(gradient, wanted, computed_in=torch.float32, summed_terms=TOKENS * picks)


@pytest.mark.parametrize("device", ["cpu", "kernel"])
def test_no_tokens(device: str, request: pytest.FixtureRequest) -> None:
    sides, index, cores = (x[:0] if place < 2 else x for place, x in enumerate(draw(2, 2)))
    if device == "kernel":
        request.getfixturevalue("interpreter")
        from ultramem_kernels.grid_top_m import triton_kernel as path
    else:
        path = torch_path
    scores, rows, blocks, places = path.best_slots(sides, index, cores, PICKS, PLAIN)
    assert rows.shape == blocks.shape == places.shape == (0, HEADS, PICKS) and scores.shape == (2, 0, HEADS, PICKS)
    sides_grad, cores_grad = path.best_slots_backward(scores, sides, cores, places)
    assert sides_grad.shape == sides.shape
    assert torch.equal(cores_grad, torch.zeros_like(cores))


def test_operators_are_well_formed() -> None:
    sides, index, cores = draw(2, 2)
    for where in (PLAIN, shuffled()):
        inputs = (
            sides.requires_grad_(),
            index,
            cores.requires_grad_(),
            PICKS,
            where.offsets_RS,
            SIDE,
            where.num_rows,
            False,
        )
        torch.library.opcheck(torch.ops.ultramem.best_slots.default, inputs)
    places = torch.randint(CANDIDATES**2, (TOKENS, HEADS, PICKS), dtype=torch.int32)
    inputs = (torch.randn(2, TOKENS, HEADS, PICKS), sides.detach(), cores.detach(), places)
    torch.library.opcheck(torch.ops.ultramem.best_slots_backward.default, inputs)


def test_bad_arguments_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    sides, index, cores = draw(2, 2)
    with pytest.raises(ArgumentError, match=r"index_TH2c has shape \[3, 2, 9\]; expected \[3, 2, 2, 9\]"):
        best_slots(sides, index[:, :, 0], cores, PICKS, PLAIN)
    with pytest.raises(ArgumentError, match=r"cores_Hhrr is torch\.float64; expected torch\.float32"):
        best_slots(sides, index, cores.double(), PICKS, PLAIN)
    with pytest.raises(ArgumentError, match="m is 82; expected 1 to 81, the places of the grid"):
        best_slots(sides, index, cores, 82, PLAIN)
    with pytest.raises(ArgumentError, match=r"addresses\.offsets_RS has shape \[4, 12\]; expected \[R, 13\]"):
        best_slots(sides, index, cores, PICKS, Addresses(13, 36, shuffled().offsets_RS))
    with pytest.raises(ArgumentError, match=r"addresses\.num_rows is 4294967296; expected up to 2147483648"):
        best_slots(sides, index, cores, PICKS, Addresses(2**16, 2**32))
    monkeypatch.setenv("ULTRAMEM_CHECK_INDICES", "1")
    with pytest.raises(ArgumentError, match=r"index_TH2c holds numbers from 0 to 11; expected \[0, 11\)"):
        best_slots(sides, index, cores, PICKS, Addresses(11, 121))
