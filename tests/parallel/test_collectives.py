"""Differentiable collectives: what arrives, what the gradients are, what the meter counts."""

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from ultramem_megatron.parallel.channel import Channel, Traffic
from ultramem_megatron.parallel.collectives import (
    all_gather_tokens,
    all_to_all,
    reduce_scatter_tokens,
)
from ultramem_megatron.parallel.host_numbers import SizesUnderWay
from ultramem_megatron.testing.distributed import run_distributed

# Letters: P ranks, T tokens of a rank, G of all.

SENT = [[2, 0, 1], [0, 0, 0], [3, 1, 2]]
"""Rows that rank p sends to rank q; rank 1 has nothing to send."""
TOKENS = [[2, 2, 2], [3, 0, 1], [0, 0, 0]]
WIDTH = 2


def rows_of(rank: int, count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Rows that say whose they are: 100 x rank + number."""
    return (100.0 * rank + torch.arange(count).repeat(WIDTH, 1).T).to(dtype)


def send_sizes() -> tuple[list[int], list[int], Traffic]:
    channel = Channel(dist.group.WORLD)
    return *SizesUnderWay(torch.tensor(SENT[channel.rank]), channel).finish(), channel.traffic


def test_sizes_arrive_at_their_rank() -> None:
    for rank, (sent_P, received, traffic) in enumerate(run_distributed(3, send_sizes)):
        assert sent_P == SENT[rank]
        assert received == [sent[rank] for sent in SENT]
        assert (traffic.forward_bytes, traffic.backward_bytes) == (2 * 8, 0)


def exchange(dtype: torch.dtype) -> tuple[Tensor, Tensor, Traffic]:
    channel = Channel(dist.group.WORLD)
    rank, receive = channel.rank, [sent[channel.rank] for sent in SENT]
    x = rows_of(rank, sum(SENT[rank]), dtype).requires_grad_()
    out = all_to_all(x, SENT[rank], receive, channel)
    # a gradient of its own for each row that arrived: the receiver's mark is added
    out.backward(out.detach() + 10 * rank)
    assert x.grad is not None
    return out.detach(), x.grad, channel.traffic


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_travel_there_and_gradients_back(dtype: torch.dtype) -> None:
    results = run_distributed(3, exchange, dtype)
    pieces = [rows_of(p, sum(SENT[p]), dtype).split(SENT[p]) for p in range(3)]
    for rank, (arrived, grad, traffic) in enumerate(results):
        assert torch.equal(arrived, torch.cat([pieces[p][rank] for p in range(3)]))
        assert torch.equal(grad, torch.cat([pieces[rank][q] + 10 * q for q in range(3)]))
        row_bytes = WIDTH * dtype.itemsize
        assert traffic.forward_bytes == row_bytes * (sum(SENT[rank]) - SENT[rank][rank])
        assert traffic.backward_bytes == row_bytes * sum(SENT[p][rank] for p in range(3) if p != rank)


def gather(tokens: list[int], dtype: torch.dtype) -> tuple[Tensor, Tensor, Traffic]:
    channel = Channel(dist.group.WORLD)
    x = rows_of(channel.rank, tokens[channel.rank], dtype).requires_grad_()
    out = all_gather_tokens(x.T.contiguous().T, tokens, channel)  # not contiguous, as transposed scores are
    out.backward(out.detach() * (channel.rank + 1))
    assert x.grad is not None
    return out.detach(), x.grad, channel.traffic


@pytest.mark.parametrize("tokens", TOKENS, ids=["equal", "ragged", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_tokens_are_gathered_and_gradients_summed(tokens: list[int], dtype: torch.dtype) -> None:
    whole = torch.cat([rows_of(p, tokens[p], dtype) for p in range(3)])
    for rank, (gathered, grad, traffic) in enumerate(run_distributed(3, gather, tokens, dtype)):
        assert gathered.dtype is torch.float32 and torch.equal(gathered, whole.float())
        own = rows_of(rank, tokens[rank], dtype).float()
        assert torch.equal(grad, sum(own * (p + 1) for p in range(3)).to(dtype)), "rounded to the type once"
        assert grad.dtype is dtype
        assert traffic.forward_bytes == 2 * tokens[rank] * WIDTH * dtype.itemsize, "travels in its own type"
        assert traffic.backward_bytes == (sum(tokens) - tokens[rank]) * WIDTH * 4, "gradients travel in fp32"


def gather_small_and_large() -> Tensor:
    """Gradients of which only the first is large."""
    channel = Channel(dist.group.WORLD)
    x = torch.zeros(1, 1, dtype=torch.bfloat16, requires_grad=True)
    out = all_gather_tokens(x, [1, 1, 1], channel)
    out.backward(torch.full((3, 1), 256.75 if channel.rank == 0 else 1.25))
    assert x.grad is not None
    return x.grad


def test_gradients_of_bf16_are_made_and_summed_in_fp32() -> None:
    """259.25 rounds to 260 in bf16. Rounded before they are added the three make 258, and after each addition 256."""
    assert [grad.item() for grad in run_distributed(3, gather_small_and_large)] == [260.0] * 3


def there_and_back() -> tuple[Tensor, Tensor]:
    channel = Channel(dist.group.WORLD)
    x = torch.full((3, 1), 1 + 2.0**-40, dtype=torch.float64, requires_grad=True)
    everyones = all_gather_tokens(reduce_scatter_tokens(x, [1, 1, 1], channel), [1, 1, 1], channel)
    everyones.backward(x.detach())
    assert x.grad is not None
    return everyones.detach(), x.grad


def test_fp64_stays_fp64() -> None:
    for everyones, grad in run_distributed(3, there_and_back):
        assert everyones.tolist() == grad.tolist() == [[3 * (1 + 2.0**-40)]] * 3
        assert everyones.dtype is grad.dtype is torch.float64


def gather_integers() -> Tensor:
    channel = Channel(dist.group.WORLD)
    out = all_gather_tokens(torch.full((2, 3), channel.rank, dtype=torch.uint8), [2, 2], channel)
    assert channel.traffic.forward_bytes == 6
    assert not out.requires_grad
    return out


def test_integers_are_gathered_without_gradient() -> None:
    for out in run_distributed(2, gather_integers):
        assert out.tolist() == [[0] * 3] * 2 + [[1] * 3] * 2


def reduce(tokens: list[int], dtype: torch.dtype) -> tuple[Tensor, Tensor, Traffic]:
    channel = Channel(dist.group.WORLD)
    x = rows_of(channel.rank, sum(tokens), dtype).requires_grad_()
    given = x.detach().clone()
    out = reduce_scatter_tokens(x, tokens, channel)
    assert torch.equal(x, given), "what was given is left as it was"
    # not contiguous, as gradients of transposed results are
    out.backward(rows_of(channel.rank, tokens[channel.rank], dtype).T.contiguous().T)
    assert x.grad is not None
    return out.detach(), x.grad, channel.traffic


@pytest.mark.parametrize("tokens", TOKENS, ids=["equal", "ragged", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_parts_are_summed_at_home_and_gradients_gathered(tokens: list[int], dtype: torch.dtype) -> None:
    parts = [rows_of(p, sum(tokens), dtype).float() for p in range(3)]
    summed = torch.stack(parts).sum(dim=0).to(dtype).split(tokens)
    gradients = torch.cat([rows_of(p, tokens[p], dtype) for p in range(3)])
    for rank, (home, grad, traffic) in enumerate(run_distributed(3, reduce, tokens, dtype)):
        assert torch.equal(home, summed[rank])
        assert torch.equal(grad, gradients)
        assert home.dtype is grad.dtype is dtype
        assert traffic.forward_bytes == (sum(tokens) - tokens[rank]) * WIDTH * 4, "parts travel in fp32"
        assert traffic.backward_bytes == 2 * tokens[rank] * WIDTH * dtype.itemsize


def reduce_small_and_large() -> Tensor:
    channel = Channel(dist.group.WORLD)
    x = torch.full((3, 1), 256.0 if channel.rank == 0 else 1.0, dtype=torch.bfloat16)
    return reduce_scatter_tokens(x, [1, 1, 1], channel)


def test_parts_of_bf16_are_summed_in_fp32() -> None:
    assert [home.item() for home in run_distributed(3, reduce_small_and_large)] == [258.0] * 3


def test_traffic_starts_anew() -> None:
    traffic = Traffic(3, 4)
    traffic.reset()
    assert traffic == Traffic(0, 0)
