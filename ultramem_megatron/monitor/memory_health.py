"""Numbers that tell whether a memory layer is well: is the table used, do scores or outputs run away?

Which to watch: UltraMem paper (arXiv 2411.12364), Figure 10, and slot usage. Results are tensors without
dimensions on the device of the input, so nothing waits for a device until somebody reads them. A mean over no
tokens is NaN: a rank without tokens should not record it.
"""

# Letters: T tokens on this rank, K slots kept per token, N physical rows of the table, r Tucker rank.

import torch
import torch.distributed as dist
from torch import Tensor


class SlotUsage:
    """Which physical rows of one table were read since the last reset. One byte a row."""

    def __init__(self, num_rows: int, device: torch.device | str = "cpu") -> None:
        """Nothing read yet, of ``num_rows`` rows; ``device`` is that of the row numbers to come."""
        self._was_read_N = torch.zeros(num_rows, dtype=torch.uint8, device=device)

    def update(self, rows: Tensor) -> None:
        """Note the rows read: integers of any shape in ``[0, N)``, repeated or none."""
        self._was_read_N[rows.flatten().long()] = 1

    def fraction(self, group: dist.ProcessGroup | None = None) -> Tensor:
        """Share of rows read by this rank, or by any rank of ``group`` (collective over it), fp32."""
        was_read_N = self._was_read_N
        if group is not None:
            was_read_N = was_read_N.clone()
            dist.all_reduce(was_read_N, op=dist.ReduceOp.MAX, group=group)
        return was_read_N.mean(dtype=torch.float32)

    def reset(self) -> None:
        """Forget all reads."""
        self._was_read_N.zero_()


def top1_score(scores: Tensor) -> Tensor:
    """Highest score of the slots of a token, averaged over everything else, fp32.

    Args:
        scores: Retrieval scores ``[..., T, K]``; leading dimensions may be score cores or heads.
    """
    return scores.detach().float().amax(dim=-1).mean()


def mean_score(scores: Tensor) -> Tensor:
    """Mean over all scores ``[..., T, K]``, fp32."""
    return scores.detach().float().mean()


def output_std(output: Tensor) -> Tensor:
    """Standard deviation over all elements of what a layer adds to the residual stream, any shape, fp32."""
    return output.detach().float().std(correction=0)


def singular_value_ratio(core: Tensor) -> Tensor:
    """Second over first singular value of Tucker cores, averaged over them, fp32; 0 for rank 1.

    Args:
        core: ``[..., r, r]``; of several score cores, their sum, because that sum chooses the slots.
    """
    values: Tensor = torch.linalg.svdvals(core.detach().float())
    if values.shape[-1] == 1:
        return values.new_zeros(())
    return (values[..., 1] / values[..., 0]).mean()


def owner_skew(served_requests: int, group: dist.ProcessGroup, device: torch.device | str = "cpu") -> Tensor:
    """Largest over mean of what the ranks of ``group`` served, fp64; NaN if none served any. Collective over ``group``.

    Args:
        served_requests: Of this rank.
        group: The owners of one table.
        device: One that the group can talk from.
    """
    served_P = torch.zeros(group.size(), dtype=torch.float64, device=device)
    served_P[group.rank()] = served_requests
    dist.all_reduce(served_P, group=group)
    return served_P.max() / served_P.mean()
