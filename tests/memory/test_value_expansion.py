"""The shuffle of virtual slots: a bijection, the same on every rank, another for another seed."""

import pytest
import torch
from torch import Tensor

from ultramem_megatron.memory.value_expansion import OneBlock, PlainSlots, SlotShuffle
from ultramem_megatron.testing.distributed import run_distributed


def all_addresses(side: int, num_rows: int, seed: int) -> tuple[Tensor, Tensor]:
    return SlotShuffle(side, num_rows, seed)(torch.arange(side * side))


@pytest.mark.parametrize("seed", [0, 1, 2**40])
@pytest.mark.parametrize(("keys_per_side", "root"), [(1, 1), (2, 1), (5, 1), (1, 2), (3, 2), (4, 3), (16, 2), (3, 16)])
def test_every_row_is_hit_once_in_each_block(keys_per_side: int, root: int, seed: int) -> None:
    num_rows, blocks = keys_per_side**2, root**2
    rows, block = all_addresses(root * keys_per_side, num_rows, seed)
    assert rows.dtype is torch.int32 and block.dtype is torch.uint8
    assert (rows.bincount(minlength=num_rows) == blocks).all()
    addresses = block.long() * num_rows + rows
    assert addresses.sort().values.tolist() == list(range(blocks * num_rows))


def test_seeds_decide() -> None:
    rows, blocks = all_addresses(32, 256, 3)
    again = all_addresses(32, 256, 3)
    assert torch.equal(rows, again[0]) and torch.equal(blocks, again[1])
    for other in (0, 4):
        agree = (all_addresses(32, 256, other)[0] == rows).float().mean()
        assert agree < 0.05, "two random addresses agree in one of 256 rows"


def test_ranks_agree() -> None:
    first, *others = run_distributed(3, all_addresses, 10, 25, 7)
    for other in others:
        assert torch.equal(other[0], first[0]) and torch.equal(other[1], first[1])


def test_copies_of_a_row_are_scattered() -> None:
    """Without the shuffle the copies of a row sit at one distance; with it their row keys are as good as drawn."""
    side, num_rows = 64, 1024
    rows, blocks = all_addresses(side, num_rows, 0)
    place = torch.empty(4, num_rows, dtype=torch.int64)
    place[blocks.long(), rows.long()] = torch.arange(side * side)
    distances = (place[0] // side - place[1] // side).abs()
    assert distances.unique().numel() > side / 2
    correlation = torch.corrcoef(torch.stack([place[0] // side, place[1] // side]).double())[0, 1]
    assert abs(float(correlation)) < 0.15  # four standard deviations of 1024 independent draws


def test_any_shape_of_slots() -> None:
    shuffle = SlotShuffle(6, 9, 0)
    whole_rows, whole_blocks = shuffle(torch.arange(36))
    slots = torch.randint(36, (2, 3, 4))
    rows, blocks = shuffle(slots)
    assert torch.equal(rows, whole_rows[slots]) and torch.equal(blocks, whole_blocks[slots])
    assert shuffle(torch.empty(0, 5, dtype=torch.int64))[0].shape == (0, 5)


def test_the_shuffle_is_not_in_the_checkpoint() -> None:
    assert SlotShuffle(6, 9, 0).state_dict() == {}


def test_plain_slots_are_rows() -> None:
    rows, blocks = PlainSlots()(torch.tensor([[3, 1], [0, 8]]))
    assert rows.tolist() == [[3, 1], [0, 8]] and rows.dtype is torch.int32
    assert blocks.tolist() == [[0, 0], [0, 0]] and blocks.dtype is torch.uint8


def test_one_block_keeps_the_rows_and_forgets_the_blocks() -> None:
    shuffle = SlotShuffle(6, 9, 0)
    slots = torch.arange(36).view(4, 9)
    rows, blocks = OneBlock(shuffle)(slots)
    assert torch.equal(rows, shuffle(slots)[0]) and shuffle(slots)[1].any()
    assert not blocks.any() and blocks.dtype is torch.uint8 and blocks.shape == slots.shape
