"""What the oracle is fed with: names, shapes and random values of weights, a bijection of slots, (u, t)."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ultramem_megatron.config.memory import MemoryConfig


def leading_singular_vectors(core: Tensor) -> tuple[Tensor, Tensor]:
    """(u, t), each [H, R] float64, of each head's summed core [H, C, R, R], with ``sum(u) >= 0``.

    The sign matters: (u, t) and (-u, -t) are the same rank-1 matrix, but choose opposite candidates.
    """
    left_HRR, _, right_HRR = torch.linalg.svd(core.detach().double().sum(dim=1))
    u_HR, t_HR = left_HRR[:, :, 0], right_HRR[:, 0, :]
    sign_H1 = torch.where(u_HR.sum(dim=1, keepdim=True) < 0, -1.0, 1.0)
    return u_HR * sign_H1, t_HR * sign_H1


def shuffled_addresses(config: MemoryConfig, seed: int) -> tuple[Tensor, Tensor]:
    """Some bijection from slots to (rows, blocks), two int64 tensors of E * N entries."""
    virtual = torch.randperm(config.expansion * config.num_rows, generator=torch.Generator().manual_seed(seed))
    return virtual % config.num_rows, virtual // config.num_rows


def reference_weight_shapes(config: MemoryConfig, hidden: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a layer's weights; what the config leaves out is not there.

    ``query.weight`` is laid out [Q, 2 (row, column), ranks that have a query, A].
    """
    ranks, width = key_ranks(config), key_width(config)
    queries = config.heads // config.heads_per_query
    shapes: dict[str, tuple[int, ...]] = {
        "query.weight": (queries * 2 * query_ranks(config) * width, hidden),
        "keys": (config.heads, 2, math.isqrt(config.expansion) * config.keys_per_side, ranks, width),
        "table": (config.keys_per_side**2, config.value_dim),
    }
    if config.query_conv_kernel:
        shapes["conv.weight"] = (hidden, config.query_conv_kernel)
    if config.normalize_keys:
        shapes |= {"query_norm.weight": (width,), "key_norm.weight": (width,)}
    if config.variant != "pkm":
        shapes["core"] = (config.heads, config.cores, ranks, ranks)
    if config.variant == "ultramem_v2":
        shapes["pre_values.weight"] = (config.pre_value_dim, hidden)
        shapes["pre_values.table"] = (config.keys_per_side**2, config.pre_value_dim)
        shapes["projection.weight"] = (hidden, config.value_dim)
    elif config.expansion > 1 or config.value_dim != hidden:
        shapes["projection.weight"] = (hidden, config.expansion * config.value_dim)
    return shapes


def key_ranks(config: MemoryConfig) -> int:
    """Components of a side's score."""
    return 1 if config.variant == "pkm" else config.tucker_rank


def key_width(config: MemoryConfig) -> int:
    """Channels of one rank's key."""
    return config.key_dim // key_ranks(config) if config.key_layout == "split" else config.key_dim


def query_ranks(config: MemoryConfig) -> int:
    """Ranks that have a query, or a part of it, to themselves."""
    return 1 if config.key_layout == "full" else key_ranks(config)


def random_weights(shapes: Mapping[str, tuple[int, ...]], seed: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Leaves that require gradients: normal with variance 1 / (last size); norms lie around 1."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in shapes.items():
        values = torch.randn(shape, generator=generator, dtype=torch.float64)
        values = 1 + 0.1 * values if "norm" in name else values / math.sqrt(shape[-1])
        weights[name] = values.to(dtype).requires_grad_()
    return weights


def check_weights(weights: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse missing, unknown and misshapen weights.

    Raises:
        ValueError: Names each of them.
    """
    given = {name: tuple(weight.shape) for name, weight in weights.items()}
    if given != dict(shapes):
        wrong = sorted(name for name in given.keys() | shapes.keys() if given.get(name) != shapes.get(name))
        raise ValueError(
            "weights do not fit the config: "
            + "; ".join(
                f"{name} is {given.get(name, 'missing')}, needs {shapes.get(name, 'nothing')}" for name in wrong
            )
        )
