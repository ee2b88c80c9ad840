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
    """Names and shapes of an UltraMem layer's weights.

    ``query.weight`` is laid out [Q, 2 (row, column), R, A]. The convolution and the norms exist only when the config
    asks for them.
    """
    width = config.key_dim // config.tucker_rank
    shapes: dict[str, tuple[int, ...]] = {}
    if config.query_conv_kernel:
        shapes["conv.weight"] = (hidden, config.query_conv_kernel)
    shapes["query.weight"] = (config.heads // config.heads_per_query * 2 * config.key_dim, hidden)
    if config.normalize_keys:
        shapes |= {"query_norm.weight": (width,), "key_norm.weight": (width,)}
    return shapes | {
        "keys": (config.heads, 2, config.grid_side, config.tucker_rank, width),
        "core": (config.heads, config.cores, config.tucker_rank, config.tucker_rank),
        "table": (config.num_rows, config.value_dim),
        "projection.weight": (hidden, config.expansion * config.value_dim),
    }


def reference_pkm_weight_shapes(config: MemoryConfig, hidden: int, *, projected: bool) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a product-key memory layer's weights; ``query.weight`` is laid out [H, 2, Dk]."""
    shapes: dict[str, tuple[int, ...]] = {
        "query.weight": (config.heads * 2 * config.key_dim, hidden),
        "keys": (config.heads, 2, config.keys_per_side, config.key_dim),
        "table": (config.num_rows, config.value_dim if projected else hidden),
    }
    return shapes | ({"projection.weight": (hidden, config.value_dim)} if projected else {})


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
