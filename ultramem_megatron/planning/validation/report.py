"""The judgement as a table of at most 120 columns."""

from collections.abc import Sequence

from ultramem_megatron.planning.profile import INTERVAL_SHARE, ClusterProfile
from ultramem_megatron.planning.validation.noise import noise_floor
from ultramem_megatron.planning.validation.results import BenchResults
from ultramem_megatron.planning.validation.validate import Score, group_by_shape

WORST_SHOWN = 5


def table(scores: Sequence[Score], results: BenchResults, profiles: Sequence[ClusterProfile]) -> str:
    """What each predictor is worth, and where the first of them chose worst."""
    shapes = group_by_shape(results.measurements)
    ranks = sorted({shape.ranks for shape in shapes})
    head = (
        f"Profile {' and '.join(one.name for one in profiles)} against {len(results.measurements)} measurements of "
        f"{len(shapes)} lookups, forward and backward, over {' and '.join(map(str, ranks))} ranks."
    )
    columns = ("predictor", "mean regret", "worst regret", "Kendall tau", "tau within", "mean error", "in interval")
    rows = [columns, *(_row(score) for score in scores)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [head, ""]
    for first, *others in rows:
        cells = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
        lines.append("  ".join([first.ljust(widths[0]), *cells]))
    return "\n".join([*lines, "", *_worst(scores[0]), "", *_noise(results), *_EXPLANATION])


def _noise(results: BenchResults) -> list[str]:
    numbers = group_by_shape(results.measurements).values()
    floor = noise_floor([[results.measurements[number] for number in one] for one in numbers])
    if floor is None:
        return []
    return [
        f"Noise: the best strategy of half of the repeats has a mean regret of {floor.mean_regret_fraction:.1%} in the "
        f"other half, at worst",
        f"{floor.worst_regret_fraction:.1%}; no model can be told to be better than that.",
        "",
    ]


_EXPLANATION = (
    "Regret: how much longer the chosen strategy takes than the best one of the shape. Tau: Kendall's tau-b of all",
    "measurements; within: of the strategies of one shape, mean of the shapes. Error: mean, absolute, of the measured.",
    f"In interval: of the measurements, where {INTERVAL_SHARE:.0%} are claimed.",
)


def _row(score: Score) -> tuple[str, ...]:
    return (
        score.predictor,
        f"{score.mean_regret_fraction:.1%}",
        f"{score.worst_regret_fraction:.1%}",
        "-" if score.kendall_tau is None else f"{score.kendall_tau:.3f}",
        "-" if score.kendall_tau_within is None else f"{score.kendall_tau_within:.3f}",
        "-" if score.mean_error_fraction is None else f"{score.mean_error_fraction:.1%}",
        "-" if score.coverage_fraction is None else f"{score.coverage_fraction:.0%}",
    )


def _worst(score: Score) -> list[str]:
    wrong = sorted((c for c in score.choices if c.chosen != c.best), key=lambda choice: -choice.regret_fraction)
    right = len(score.choices) - len(wrong)
    lines = [f"The {score.predictor} took the best strategy in {right} of {len(score.choices)}."]
    for choice in wrong[:WORST_SHOWN]:
        lines.append(f"  {choice.shape}: {choice.chosen}, {choice.regret_fraction:.1%} longer than {choice.best}")
    return lines
