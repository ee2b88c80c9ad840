"""Peers of a lookup that PyTorch, or who runs the bench, provides: one core, one block, sums of picks with weights."""

import importlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ultramem_kernels.products import multiply_rows, multiply_rows_reference

# Letters: N rows of the table, V value dimension, T tokens, K picks per token.

Peer = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(table_NV, rows_TK, weights_TK) -> sums_TV, differentiable in the table."""


def find_peer(name: str) -> Peer:
    """``MODULE:FUNCTION``, of a package that is installed here.

    Raises:
        ValueError: The name has another form, or there is nothing of it.
    """
    module, _, function = name.partition(":")
    try:
        found: Peer = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"--peer {name}: {error}; give MODULE:FUNCTION of an installed package") from None
    return found


def embedding_bag(table_NV: Tensor, rows_TK: Tensor, weights_TK: Tensor) -> Tensor:
    """PyTorch's."""
    return F.embedding_bag(rows_TK, table_NV, mode="sum", per_sample_weights=weights_TK)


def measure_peers(run: Any, where: tuple[str, str, int], lookup: Any, names: list[str]) -> None:
    """Forward and, with a dense gradient of the table, forward and backward; torch's bag has none for bf16 weights."""
    table_NV, weights_TK = lookup.table_NV.detach().requires_grad_(), lookup.scores_hTK[0].contiguous()
    cotangent_TV = lookup.grad_TEV[:, 0].contiguous()
    for name, peer in [("embedding_bag", embedding_bag), *((name, find_peer(name)) for name in names)]:

        def both(peer: Peer = peer) -> None:
            table_NV.grad = None
            peer(table_NV, lookup.rows_TK, weights_TK).backward(cotangent_TV)

        if name != "embedding_bag":
            run.add(where, "forward", f"{name}, one core and block", lambda: peer(table_NV, lookup.rows_TK, weights_TK))  # noqa: B023
        run.add(where, "backward", f"{name}, with forward, one core and block, dense gradient", both)
    table_NV.grad = None


def measure_products(run: Any, where: tuple[str, str, int], lookup: Any, plain: bool) -> None:
    """Inner products of pre-values, with rows as wide as those of the table. ``plain``: gather and einsum too."""
    table_NV, rows_TK = lookup.table_NV, lookup.rows_TK
    vectors_TV = lookup.grad_TEV[:, 0].contiguous()
    needed = rows_TK.numel() * (table_NV.shape[1] * table_NV.element_size() + 4 + 4) + vectors_TV.nbytes
    ours = lambda: multiply_rows(table_NV, rows_TK, vectors_TV)  # noqa: E731
    few = slice(64)
    read = table_NV[rows_TK[few].reshape(-1).long()].double()
    places = torch.arange(read.shape[0], device=read.device).view(rows_TK[few].shape)
    exact = multiply_rows_reference(read, places, vectors_TV[few].double())
    error = float((ours()[few].double() - exact).abs().max() / exact.abs().max())
    run.add(where, "products", "ultramem", ours, needed, error)
    if plain:
        gathered = lambda: multiply_rows_reference(table_NV, rows_TK, vectors_TV)  # noqa: E731
        run.add(where, "products", "gather + einsum", gathered, needed)
