"""``best_candidates`` on CPUs, where the components of the scores need not lie in one tensor."""

from collections.abc import Sequence

from torch import Tensor

from ultramem_kernels.selection import top_m

# Letters: T tokens, S keys of a side, r components of a score, m kept.


def best_of_components(scores_TS: Sequence[Tensor], direction_r: Tensor, m: int) -> Tensor:
    """The keys with the largest projected scores of one batch, int64 [T, m]; see ``best_candidates_reference``.

    Args:
        scores_TS: Of each component.
        direction_r: On a CPU, in the type of the scores.
        m: 1 to S.
    """
    first_TS, *others = scores_TS
    projected_TS = first_TS * direction_r[0]
    for component, other_TS in enumerate(others, start=1):
        projected_TS.addcmul_(other_TS, direction_r[component])
    return top_m(projected_TS, m)
