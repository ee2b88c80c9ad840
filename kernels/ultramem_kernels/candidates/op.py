"""``best_candidates``: checks, and the torch operator. It has no gradient: it chooses."""

import torch
from torch import Tensor

from ultramem_kernels import arguments
from ultramem_kernels.candidates.torch_path import best_of_components
from ultramem_kernels.triton_kernels import triton_kernels

# Letters: as in reference.py.

PART_ELEMENTS = 2**20
"""Numbers projected at a time on a CPU: 4 MiB in fp32 stay in its cache."""


def best_candidates(scores_BrTS: Tensor, direction_Br: Tensor, m: int) -> Tensor:
    """The keys with the largest projected scores; see ``best_candidates_reference``.

    Args:
        scores_BrTS: fp32 (fp64 on CPUs), contiguous along S.
        direction_Br: The same type.
        m: 1 to S.

    Returns:
        int64 [B, T, m]. Which keys is certain, ties go to the smaller. A CPU has them from the best down, a GPU in
        ascending order.

    Raises:
        ArgumentError: Names the argument, and what was expected.
    """
    arguments.need_dtype("scores_BrTS", scores_BrTS, (torch.float32, torch.float64))
    arguments.need_shape("scores_BrTS", scores_BrTS, ("B", "r", "T", "S"))
    arguments.need_dtype("direction_Br", direction_Br, (scores_BrTS.dtype,))
    arguments.need_shape("direction_Br", direction_Br, tuple(scores_BrTS.shape[:2]))
    arguments.need_same_device({"scores_BrTS": scores_BrTS, "direction_Br": direction_Br})
    if not 1 <= m <= scores_BrTS.shape[3]:
        raise arguments.ArgumentError(f"m is {m}; expected 1 to {scores_BrTS.shape[3]}, the keys of a side")
    return _best_candidates(scores_BrTS, direction_Br, m)


@torch.library.custom_op("ultramem::best_candidates", mutates_args=(), device_types="cpu")
def _best_candidates(scores_BrTS: Tensor, direction_Br: Tensor, m: int) -> Tensor:
    batches, _, tokens, side = scores_BrTS.shape
    found = scores_BrTS.new_empty((batches, tokens, m), dtype=torch.int64)
    size = max(1, PART_ELEMENTS // side)
    for batch in range(batches):
        for part in (slice(start, start + size) for start in range(0, tokens, size)):
            found[batch, part] = best_of_components(scores_BrTS[batch, :, part].unbind(0), direction_Br[batch], m)
    return found


@_best_candidates.register_kernel("cuda")
def _(scores_BrTS: Tensor, direction_Br: Tensor, m: int) -> Tensor:
    return triton_kernels("candidates").best_candidates(scores_BrTS, direction_Br, m)


@_best_candidates.register_fake
def _(scores_BrTS: Tensor, direction_Br: Tensor, m: int) -> Tensor:
    batches, _, tokens, _ = scores_BrTS.shape
    return scores_BrTS.new_empty((batches, tokens, m), dtype=torch.int64)
