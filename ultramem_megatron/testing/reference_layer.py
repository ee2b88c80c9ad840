"""The oracle: one memory layer in float64, on one process, unsharded, straight from the paper's definitions.

Slow on purpose, one token and one head at a time. It shares no code with the layers it judges; of this project it
imports the config alone. Autograd gives the gradients with regard to every weight and the input; the choice of
slots carries none.
"""

# Letters: s positions, b sequences, T = s * b tokens (position major), D hidden width,
#          H heads (h: one of them), Q queries, R Tucker rank, A = Dk / R key width of one rank component,
#          S side of the slot grid, M slots per head, K = H * M slots per token, C score cores,
#          N physical rows, E blocks, V width of a row, G = V / C width of a slice.

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ultramem_megatron.config.memory import MemoryConfig
from ultramem_megatron.testing.reference_retrieval import join_heads, pick_by_sum, pick_in_two_stages
from ultramem_megatron.testing.reference_weights import (
    check_weights,
    reference_pkm_weight_shapes,
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
    u: Tensor,
    t: Tensor,
) -> ReferenceOutput:
    """One UltraMem layer: TDQKR, IVE and MCS (paper equations 4 to 17).

    Args:
        config: The layer's sizes; spans and partition play no part.
        weights: Of any floating type, with names and shapes as in ``reference_weight_shapes``.
        x: [s, b, D], what the layer reads, at least one token. A sequence starts at position 0.
        slot_to_address: The bijection between slots and (row, block).
        u: [H, R] left vectors that choose the candidate rows, see ``leading_singular_vectors``.
        t: [H, R] right vectors, for the columns.

    Raises:
        ValueError: Names or shapes of the weights do not fit the config.
    """
    s, b, D = x.shape
    check_weights(weights, reference_weight_shapes(config, D))
    wide = {name: weight.double() for name, weight in weights.items()}
    queries_TQ2RA = _queries(config, wide, x.double())
    keys_H2SRA = wide["keys"]
    if config.normalize_keys:
        queries_TQ2RA = _rms_norm(queries_TQ2RA, wide["query_norm.weight"])
        keys_H2SRA = _rms_norm(keys_H2SRA, wide["key_norm.weight"])

    picks = [
        [
            pick_in_two_stages(
                torch.einsum("sra,ra->rs", keys_H2SRA[h, 0], queries_TQ2RA[token, h // config.heads_per_query, 0]),
                torch.einsum("sra,ra->rs", keys_H2SRA[h, 1], queries_TQ2RA[token, h // config.heads_per_query, 1]),
                wide["core"][h],
                u[h].double(),
                t[h].double(),
                config.top_m,
            )
            for h in range(config.heads)
        ]
        for token in range(s * b)
    ]
    slots_TK, scores_CTK, margin = join_heads(picks)
    rows_TK, blocks_TK = _address(slot_to_address, slots_TK)
    pooled_TEV = reference_pooling(wide["table"], rows_TK, blocks_TK, scores_CTK, num_blocks=config.expansion)
    output_TD = pooled_TEV.flatten(1) @ wide["projection.weight"].T
    return ReferenceOutput(
        output=output_TD.reshape(s, b, D),
        slots=slots_TK,
        rows=rows_TK,
        blocks=blocks_TK,
        scores=scores_CTK,
        pooled=pooled_TEV,
        margin=margin,
    )


def reference_pkm_layer(config: MemoryConfig, weights: Mapping[str, Tensor], x: Tensor) -> ReferenceOutput:
    """One product-key memory layer, the start of the paper's ablation (equations 1 to 3).

    Scores add, each head's slots are weighed by their softmax, heads sum. There is no norm, convolution, Tucker
    core or expansion; a slot is a physical row. Without ``projection.weight`` the table is as wide as the model.

    Args:
        config: The layer's sizes.
        weights: Of any floating type, with names and shapes as in ``reference_pkm_weight_shapes``.
        x: [s, b, D], what the layer reads, at least one token.

    Raises:
        ValueError: Names or shapes of the weights do not fit the config.
    """
    s, b, D = x.shape
    projected = "projection.weight" in weights
    check_weights(weights, reference_pkm_weight_shapes(config, D, projected=projected))
    wide = {name: weight.double() for name, weight in weights.items()}
    flat_TD = x.double().reshape(s * b, D)
    queries_TH2A = (flat_TD @ wide["query.weight"].T).reshape(s * b, config.heads, 2, config.key_dim)
    picks = [
        [
            pick_by_sum(
                wide["keys"][h, 0] @ queries_TH2A[token, h, 0],
                wide["keys"][h, 1] @ queries_TH2A[token, h, 1],
                config.top_m,
            )
            for h in range(config.heads)
        ]
        for token in range(s * b)
    ]
    rows_TK, scores_1TK, margin = join_heads(picks)
    blocks_TK = torch.zeros_like(rows_TK)
    pooled_T1V = reference_pooling(wide["table"], rows_TK, blocks_TK, scores_1TK, num_blocks=1)
    output_TD = pooled_T1V[:, 0] @ wide["projection.weight"].T if projected else pooled_T1V[:, 0]
    return ReferenceOutput(
        output=output_TD.reshape(s, b, D),
        slots=rows_TK,
        rows=rows_TK,
        blocks=blocks_TK,
        scores=scores_1TK,
        pooled=pooled_T1V,
        margin=margin,
    )


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

    ``W_p`` is the part of the projection that meets block p. Each score core weighs the products of its own slice,
    so there is one table per core; they sum to the paper's.

    Returns:
        [C, E * N, D] float64, addressed by block * N + row.
    """
    table_NV = weights["table"].double()
    blocks_DV = weights["projection.weight"].double().chunk(config.expansion, dim=1)
    width = config.value_dim // config.cores
    tables = []
    for c in range(config.cores):
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
    for c in range(config.cores):
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
    return flat.reshape(
        s * b, config.heads // config.heads_per_query, 2, config.tucker_rank, config.key_dim // config.tucker_rank
    )


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
