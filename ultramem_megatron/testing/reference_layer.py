"""The oracle: one memory layer in float64, on one process, unsharded, straight from the paper's definitions.

Slow on purpose, one token and one head at a time. It shares no code with the layers it judges; of this project it
imports the config alone. Autograd gives the gradients with regard to every weight and the input; the choice of
slots carries none.
"""

# Letters: s positions, b sequences, T = s * b tokens (position major), D hidden width,
#          H heads (h: one of them), Q queries, R Tucker rank, A = Dk / R key width of one rank component,
#          S side of the slot grid, M slots per head, K = H * M slots per token, C score cores,
#          N physical rows, E blocks, V width of a row, G = V / C width of a slice.

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ultramem_megatron.config.memory import MemoryConfig
from ultramem_megatron.testing.reference_retrieval import Picks, join_heads, pick_by_sum, pick_in_two_stages
from ultramem_megatron.testing.reference_weights import (
    check_weights,
    key_ranks,
    key_width,
    query_ranks,
    reference_weight_shapes,
)

NORM_EPSILON = 1e-6

SlotToAddress = Callable[[Tensor], tuple[Tensor, Tensor]] | tuple[Tensor, Tensor]
"""Slots -> (rows, blocks), as a function or as two integer tensors of E * N entries."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReferenceOutput:
    """What a layer computes for T tokens. Slots are ordered by head, then from the best score down."""

    output: Tensor
    """[s, b, D] float64."""
    slots: Tensor
    """[T, K] int64, in [0, E * N): row key times S plus column key."""
    rows: Tensor
    """[T, K] int64, physical rows in [0, N)."""
    blocks: Tensor
    """[T, K] int64, in [0, E)."""
    scores: Tensor
    """[C, T, K] float64, the weights of the rows; core c weighs slice c."""
    pooled: Tensor
    """[T, E, V] float64."""
    margin: float
    """Smallest distance between a score that was kept and the best one dropped, over all top-m of all tokens. A
    computation whose scores err by less than half of it picks the same slots. Infinite if nothing was dropped."""


def reference_memory_layer(
    config: MemoryConfig,
    weights: Mapping[str, Tensor],
    x: Tensor,
    *,
    slot_to_address: SlotToAddress,
    u: Tensor | None = None,
    t: Tensor | None = None,
) -> ReferenceOutput:
    """One memory layer of any variant: PKM (paper equations 1 to 3), UltraMem (4 to 17), UltraMemV2 (its 12 and 15).

    Args:
        config: The layer's sizes; spans and partition play no part.
        weights: Of any floating type, with names and shapes as in ``reference_weight_shapes``.
        x: [s, b, D], what the layer reads, at least one token. A sequence starts at position 0.
        slot_to_address: The bijection between slots and (row, block).
        u: [H, R] left vectors that choose the candidate rows, see ``leading_singular_vectors``; PKM has none.
        t: [H, R] right vectors, for the columns.

    Raises:
        ValueError: Names or shapes of the weights do not fit the config.
    """
    s, b, D = x.shape
    check_weights(weights, reference_weight_shapes(config, D))
    wide = {name: weight.double() for name, weight in weights.items()}
    row_scores_THRS, column_scores_THRS = _side_scores(config, wide, x.double())
    picks = [
        [
            _pick(config, row_scores_THRS[token, h], column_scores_THRS[token, h], wide, h, u, t)
            for h in range(config.heads)
        ]
        for token in range(s * b)
    ]
    slots_TK, scores_CTK, margin = join_heads(picks)
    rows_TK, blocks_TK = _address(slot_to_address, slots_TK)
    num_blocks = config.expansion
    if config.variant == "ultramem_v2":
        num_blocks, blocks_TK = 1, torch.zeros_like(blocks_TK)
        inner_TP = x.double().reshape(s * b, D) @ wide["pre_values.weight"].T
        scores_CTK = scores_CTK * (wide["pre_values.table"][rows_TK] * inner_TP.unsqueeze(1)).sum(dim=-1)
    pooled_TEV = reference_pooling(wide["table"], rows_TK, blocks_TK, scores_CTK, num_blocks=num_blocks)
    output_TD = pooled_TEV.flatten(1)
    if "projection.weight" in wide:
        output_TD = output_TD @ wide["projection.weight"].T
    return ReferenceOutput(
        output=output_TD.reshape(s, b, D),
        slots=slots_TK,
        rows=rows_TK,
        blocks=blocks_TK,
        scores=scores_CTK,
        pooled=pooled_TEV,
        margin=margin,
    )


def _side_scores(config: MemoryConfig, wide: Mapping[str, Tensor], x_sbD: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column scores of each rank, two of [T, H, R, S]."""
    queries_TQ2RA, keys_H2SRA = _queries(config, wide, x_sbD), wide["keys"]
    if config.normalize_keys:
        queries_TQ2RA = _rms_norm(queries_TQ2RA, wide["query_norm.weight"])
        keys_H2SRA = _rms_norm(keys_H2SRA, wide["key_norm.weight"])
    sides = []
    for side in range(2):
        of_heads = []
        for h in range(config.heads):
            query_TRA = queries_TQ2RA[:, h // config.heads_per_query, side]
            of_ranks = [
                query_TRA[:, rank if query_ranks(config) > 1 else 0] @ keys_H2SRA[h, side, :, rank].T
                for rank in range(key_ranks(config))
            ]
            of_heads.append(torch.stack(of_ranks, dim=1))
        sides.append(torch.stack(of_heads, dim=1))
    return sides[0], sides[1]


def _pick(
    config: MemoryConfig,
    row_scores_RS: Tensor,
    column_scores_RS: Tensor,
    wide: Mapping[str, Tensor],
    head: int,
    u: Tensor | None,
    t: Tensor | None,
) -> Picks:
    sizes = {"candidates": config.side_top_m or config.top_m, "top_m": config.top_m}
    if config.variant == "pkm":
        found = pick_by_sum(row_scores_RS[0], column_scores_RS[0], **sizes)
    else:
        assert u is not None and t is not None, "a core chooses by its singular vectors"
        found = pick_in_two_stages(
            row_scores_RS, column_scores_RS, wide["core"][head], u[head].double(), t[head].double(), **sizes
        )
    return dataclasses.replace(found, scores_CM=found.scores_CM.softmax(dim=1)) if config.softmax else found


def reference_pooling(
    table_NV: Tensor, rows_TK: Tensor, blocks_TK: Tensor, scores_CTK: Tensor, *, num_blocks: int
) -> Tensor:
    """Weighted sums of rows, one for each block: ``pooled[t, e, slice c] = sum of scores[c, t, k] * row[slice c]``
    over the picks k of block e. A row that a token picked twice counts twice.

    Returns:
        pooled [T, E, V], of the table's type.
    """
    num_cores, num_tokens, _ = scores_CTK.shape
    slices_CNG = table_NV.chunk(num_cores, dim=1)
    pooled = [
        torch.cat([scores_CTK[c, t, of_block] @ slices_CNG[c][rows_TK[t, of_block].long()] for c in range(num_cores)])
        for t in range(num_tokens)
        for of_block in (blocks_TK[t] == e for e in range(num_blocks))
    ]
    if not pooled:
        return table_NV.new_zeros(0, num_blocks, table_NV.shape[1])
    return torch.stack(pooled).reshape(num_tokens, num_blocks, table_NV.shape[1])


def virtual_table(config: MemoryConfig, weights: Mapping[str, Tensor]) -> Tensor:
    """The expanded table that is never built otherwise: E blocks ``V W_p``, stacked (paper equation 13).

    ``W_p`` is the part of the projection that meets block p; UltraMemV2 has one block, and without a projection W is
    the identity. Each score core weighs the products of its own slice, so there is one table per core; they sum to
    the paper's.

    Returns:
        [C, E * N, D] float64, addressed by block * N + row.
    """
    table_NV = weights["table"].double()
    num_blocks = 1 if config.variant == "ultramem_v2" else config.expansion
    num_cores = 1 if config.variant == "pkm" else config.cores
    width = config.value_dim // num_cores
    identity = torch.eye(config.value_dim, dtype=torch.float64)
    blocks_DV = weights.get("projection.weight", identity).double().chunk(num_blocks, dim=1)
    tables = []
    for c in range(num_cores):
        of_core = slice(c * width, (c + 1) * width)
        tables.append(torch.cat([table_NV[:, of_core] @ block[:, of_core].T for block in blocks_DV]))
    return torch.stack(tables)


def lookup_in_virtual_table(config: MemoryConfig, weights: Mapping[str, Tensor], found: ReferenceOutput) -> Tensor:
    """The layer's output by its definition: scores times rows of the virtual table, summed.

    Returns:
        [T, D] float64, equal to ``found.output`` up to rounding.
    """
    virtual_CZD = virtual_table(config, weights)
    addresses_TK = found.blocks * config.num_rows + found.rows
    output_TD = torch.zeros(len(addresses_TK), virtual_CZD.shape[2], dtype=torch.float64)
    for c in range(len(virtual_CZD)):
        output_TD = output_TD + (found.scores[c].unsqueeze(2) * virtual_CZD[c][addresses_TK]).sum(dim=1)
    return output_TD


def auxiliary_loss(core: Tensor, weight: float, margin: float) -> Tensor:
    """``weight / (R - 1) * sum over i >= 2 of max(0, sigma_i - margin)^2``, of each head's summed core, over heads.

    It keeps the core near rank 1, so that stage 1, which sees the leading singular vectors alone, finds what stage 2
    would choose (paper equations 11 and 12).

    Args:
        core: [H, C, R, R].
        weight: alpha.
        margin: tau, singular values up to it cost nothing.

    Returns:
        A float64 scalar; 0 if R is 1.
    """
    rank = core.shape[-1]
    loss = core.double().sum() * 0.0
    if rank == 1:
        return loss
    for core_CRR in core.double():
        singular_values_R = torch.linalg.svdvals(core_CRR.sum(dim=0))
        loss = loss + (singular_values_R[1:] - margin).clamp(min=0).square().sum()
    return weight / (rank - 1) * loss


def _queries(config: MemoryConfig, wide: Mapping[str, Tensor], x_sbD: Tensor) -> Tensor:
    """[T, Q, 2, R, A], not yet normed."""
    s, b, D = x_sbD.shape
    seen_sbD = _causal_convolution(x_sbD, wide["conv.weight"]) if config.query_conv_kernel else x_sbD
    flat = seen_sbD.reshape(s * b, D) @ wide["query.weight"].T
    return flat.reshape(s * b, config.heads // config.heads_per_query, 2, query_ranks(config), key_width(config))


def _causal_convolution(x_sbD: Tensor, weight_DJ: Tensor) -> Tensor:
    """``y[p] = sum over taps j of weight[:, j] * x[p - (J - 1) + j]``, with zeros before the first position."""
    num_taps = weight_DJ.shape[1]
    positions = []
    for p in range(x_sbD.shape[0]):
        total_bD = torch.zeros_like(x_sbD[0])
        for j in range(num_taps):
            source = p - (num_taps - 1) + j
            if source >= 0:
                total_bD = total_bD + weight_DJ[:, j] * x_sbD[source]
        positions.append(total_bD)
    return torch.stack(positions)


def _rms_norm(values: Tensor, weight_A: Tensor) -> Tensor:
    return values / (values.square().mean(dim=-1, keepdim=True) + NORM_EPSILON).sqrt() * weight_A


def _address(slot_to_address: SlotToAddress, slots_TK: Tensor) -> tuple[Tensor, Tensor]:
    if callable(slot_to_address):
        rows_TK, blocks_TK = slot_to_address(slots_TK)
    else:
        rows_TK, blocks_TK = (part[slots_TK] for part in slot_to_address)
    return rows_TK.long(), blocks_TK.long()
