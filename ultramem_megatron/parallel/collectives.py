"""Differentiable collectives over a ``Channel``. Ranks may hold different numbers of tokens, none included.

Every function is collective: all ranks of the channel's group must call it in the same order. Those that ``begin``
return at once, with something to await or to finish; the others wait for what they have begun.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from ultramem_kernels.precision import widened
from ultramem_megatron.parallel.channel import Channel
from ultramem_megatron.parallel.exchange import Exchange, Kind, Sent

# Letters: P ranks of the group, T tokens on this rank, G tokens in the group, n_p tokens of rank p.


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
    return begin_all_to_all(x, send, receive, channel).finish()


def begin_all_to_all(
    x: Tensor, send: Sequence[int], receive: Sequence[int], channel: Channel, name: str = "all-to-all"
) -> Exchange:
    """Begin ``all_to_all``. ``name``: what travels, for profiles."""
    there, back = list(send), list(receive)

    def forward(x: Tensor) -> Sent:
        return _exchange(x, there, back, channel, backward=False)

    def backward(grad: Tensor) -> Sent:
        return _exchange(grad, back, there, channel, backward=True)

    return Exchange(x, Kind(name=name, channel=channel, forward=forward, backward=backward))


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
    return begin_all_gather_tokens(x, tokens, channel).finish()


def begin_all_gather_tokens(x: Tensor, tokens: Sequence[int], channel: Channel, name: str = "all-gather") -> Exchange:
    """Begin ``all_gather_tokens``. ``name``: what travels, for profiles."""
    counts, dtype = list(tokens), x.dtype

    def forward(x: Tensor) -> Sent:
        return _gather(x, counts, channel, backward=False, arrive_wide=x.is_floating_point())

    def backward(grad: Tensor) -> Sent:
        return _reduce_scatter(grad, counts, channel, dtype, backward=True)

    return Exchange(x, Kind(name=name, channel=channel, forward=forward, backward=backward))


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
    return begin_reduce_scatter_tokens(x, tokens, channel).finish()


def begin_reduce_scatter_tokens(
    x: Tensor, tokens: Sequence[int], channel: Channel, name: str = "reduce-scatter"
) -> Exchange:
    """Begin ``reduce_scatter_tokens``. ``name``: what travels, for profiles."""
    counts, dtype = list(tokens), x.dtype

    def forward(x: Tensor) -> Sent:
        return _reduce_scatter(x, counts, channel, dtype, backward=False)

    def backward(grad: Tensor) -> Sent:
        return _gather(grad, counts, channel, backward=True, arrive_wide=False)

    return Exchange(x, Kind(name=name, channel=channel, forward=forward, backward=backward))


def _exchange(x: Tensor, send: list[int], receive: list[int], channel: Channel, *, backward: bool) -> Sent:
    x = x.contiguous()
    out = x.new_empty((sum(receive), *x.shape[1:]))
    work = dist.all_to_all_single(out, x, receive, send, group=channel.group, async_op=True)
    channel.count((sum(send) - send[channel.rank]) * x[:1].numel(), x, backward=backward)
    return Sent(work, (x, out), lambda: out)


def _gather(x: Tensor, tokens: list[int], channel: Channel, *, backward: bool, arrive_wide: bool) -> Sent:
    channel.count((channel.size - 1) * x.numel(), x, backward=backward)
    x = x.contiguous()
    out = x.new_empty((sum(tokens), *x.shape[1:]))
    if len(set(tokens)) == 1:
        work = dist.all_gather_into_tensor(out, x, group=channel.group, async_op=True)
    else:
        # ragged: each rank sends its own tokens to every other; no padding to the longest
        sent = [x.shape[0]] * channel.size
        x = x.repeat(channel.size, *[1] * (x.dim() - 1))
        work = dist.all_to_all_single(out, x, tokens, sent, group=channel.group, async_op=True)
    return Sent(work, (x, out), lambda: widened(out) if arrive_wide else out)


def _reduce_scatter(x: Tensor, tokens: list[int], channel: Channel, dtype: torch.dtype, *, backward: bool) -> Sent:
    """In fp32, whatever the type of ``x``; fp64 stays. What arrives is of type ``dtype``."""
    x = widened(x).contiguous()
    mine = tokens[channel.rank]
    channel.count(x.numel() - x[:mine].numel(), x, backward=backward)
    if len(set(tokens)) == 1:
        out = x.new_empty((mine, *x.shape[1:]))
        work = dist.reduce_scatter_tensor(out, x, group=channel.group, async_op=True)
        return Sent(work, (x, out), lambda: out.to(dtype))
    parts = x.new_empty((channel.size * mine, *x.shape[1:]))
    work = dist.all_to_all_single(parts, x, [mine] * channel.size, tokens, group=channel.group, async_op=True)
    return Sent(work, (x, parts), lambda: parts.view(channel.size, mine, *x.shape[1:]).sum(dim=0).to(dtype))
