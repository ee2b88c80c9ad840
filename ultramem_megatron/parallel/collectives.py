"""Differentiable collectives over a ``Channel``. Ranks may hold different numbers of tokens, none included.

Every function is collective: all ranks of the channel's group must call it in the same order.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from ultramem_megatron.parallel.channel import Channel
from ultramem_megatron.parallel.precision import widened

# Letters: P ranks of the group, T tokens on this rank, G tokens in the group, n_p tokens of rank p.


def exchange_sizes(sizes_P: Tensor, channel: Channel) -> Tensor:
    """Tell every rank how many items it will get from here; learn how many come from each.

    Args:
        sizes_P: int64 [P, ...], item p goes to rank p.
        channel: The ranks.

    Returns:
        int64 [P, ...]: item p comes from rank p.
    """
    received_P = torch.empty_like(sizes_P)
    dist.all_to_all_single(received_P, sizes_P.contiguous(), group=channel.group)
    channel.count((channel.size - 1) * sizes_P[0].numel(), sizes_P, backward=False)
    return received_P


def all_to_all(x: Tensor, send: Sequence[int], receive: Sequence[int], channel: Channel) -> Tensor:
    """Send ``send[p]`` leading rows of ``x`` to rank p, in order; differentiable.

    Args:
        x: [sum(send), ...].
        send: Rows for each rank.
        receive: Rows from each rank; what the others have in their ``send`` for this one.
        channel: The ranks.

    Returns:
        [sum(receive), ...], the pieces in the order of the ranks. Gradients travel the way back.
    """
    return _AllToAll.apply(x, list(send), list(receive), channel)


def all_gather_tokens(x: Tensor, tokens: Sequence[int], channel: Channel) -> Tensor:
    """Everyone's tokens, in the order of the ranks; differentiable.

    Args:
        x: [T, ...], with ``T == tokens[channel.rank]``.
        tokens: Tokens of each rank.
        channel: The ranks.

    Returns:
        [G, ...]. What is not an integer travels in its own type and arrives in fp32: so the gradient's parts are made
        in fp32, as which they are reduce-scattered, and only their sum is rounded to the type of ``x``. fp64 stays.
    """
    return _AllGatherTokens.apply(x, list(tokens), channel)


def reduce_scatter_tokens(x: Tensor, tokens: Sequence[int], channel: Channel) -> Tensor:
    """The sum of everyone's parts, each rank's own tokens; differentiable. The reverse of ``all_gather_tokens``.

    Args:
        x: [G, ...], this rank's part for the tokens of all ranks, in the order of the ranks.
        tokens: Tokens of each rank.
        channel: The ranks.

    Returns:
        [T, ...], with ``T == tokens[channel.rank]``; travels and is summed in fp32. The gradient is gathered, in its
        own type.
    """
    return _ReduceScatterTokens.apply(x, list(tokens), channel)


class _AllToAll(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, send: list[int], receive: list[int], channel: Channel) -> Tensor:
        ctx.send, ctx.receive, ctx.channel = send, receive, channel
        return _exchange(x, send, receive, channel, backward=False)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return _exchange(grad, ctx.receive, ctx.send, ctx.channel, backward=True), None, None, None


def _exchange(x: Tensor, send: list[int], receive: list[int], channel: Channel, *, backward: bool) -> Tensor:
    out = x.new_empty((sum(receive), *x.shape[1:]))
    dist.all_to_all_single(out, x.contiguous(), receive, send, group=channel.group)
    channel.count((sum(send) - send[channel.rank]) * x[:1].numel(), x, backward=backward)
    return out


class _AllGatherTokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, tokens: list[int], channel: Channel) -> Tensor:
        ctx.tokens, ctx.channel, ctx.dtype = tokens, channel, x.dtype
        out = _gather(x, tokens, channel, backward=False)
        return widened(out) if out.is_floating_point() else out

    @staticmethod
    def backward(ctx, grad: Tensor):
        return _reduce_scatter(grad, ctx.tokens, ctx.channel, backward=True).to(ctx.dtype), None, None


class _ReduceScatterTokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, tokens: list[int], channel: Channel) -> Tensor:
        ctx.tokens, ctx.channel = tokens, channel
        return _reduce_scatter(x, tokens, channel, backward=False).to(x.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return _gather(grad, ctx.tokens, ctx.channel, backward=True), None, None


def _gather(x: Tensor, tokens: list[int], channel: Channel, *, backward: bool) -> Tensor:
    channel.count((channel.size - 1) * x.numel(), x, backward=backward)
    out = x.new_empty((sum(tokens), *x.shape[1:]))
    if len(set(tokens)) == 1:
        dist.all_gather_into_tensor(out, x.contiguous(), group=channel.group)
        return out
    # ragged: each rank sends its own tokens to every other; no padding to the longest
    copies = x.repeat(channel.size, *[1] * (x.dim() - 1))
    dist.all_to_all_single(out, copies, tokens, [x.shape[0]] * channel.size, group=channel.group)
    return out


def _reduce_scatter(x: Tensor, tokens: list[int], channel: Channel, *, backward: bool) -> Tensor:
    """In fp32, whatever the type of ``x``; fp64 stays."""
    x = widened(x).contiguous()
    mine = tokens[channel.rank]
    channel.count(x.numel() - x[:mine].numel(), x, backward=backward)
    if len(set(tokens)) == 1:
        out = x.new_empty((mine, *x.shape[1:]))
        dist.reduce_scatter_tensor(out, x, group=channel.group)
        return out
    parts = x.new_empty((channel.size * mine, *x.shape[1:]))
    dist.all_to_all_single(parts, x, [mine] * channel.size, tokens, group=channel.group)
    return parts.view(channel.size, mine, *x.shape[1:]).sum(dim=0)
