"""``ultramem validate``: what the planner predicts against what was measured."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer


def validate(
    results: Annotated[Path, typer.Argument(metavar="RESULTS", help="What `tools/bench_partition` wrote.")],
    profile: Annotated[
        list[str], typer.Option("--profile", metavar="P", help="Of `ultramem calibrate`; repeat for other rank counts.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Scores and choices as a JSON document.")] = False,
    plot: Annotated[Path | None, typer.Option("--plot", metavar="OUT.png", help="Draw it, too.")] = None,
) -> None:
    """Judge the planner: which strategy it would choose for each measured lookup, what that choice costs beyond the
    best one, how well it orders, how far off its seconds are; beside it the same for four rules of thumb.

    A lookup over N ranks is predicted with the profile that was calibrated with N ranks a node, else with the first.
    Calibration times collectives, row reads and products, never a strategy, so every lookup here is held out.

    Example: ultramem validate bench.json --profile four.json --profile eight.json --plot validation.png
    """
    from ultramem_launch.validation_plot import draw
    from ultramem_megatron.planning.cluster import parse_cluster
    from ultramem_megatron.planning.page import paragraph
    from ultramem_megatron.planning.validation.noise import noise_floor
    from ultramem_megatron.planning.validation.predictors import circumstances, predictors
    from ultramem_megatron.planning.validation.report import table
    from ultramem_megatron.planning.validation.results import BenchResults
    from ultramem_megatron.planning.validation.validate import as_json as plain
    from ultramem_megatron.planning.validation.validate import group_by_shape, score_all

    found, profiles = BenchResults.load(results), [parse_cluster(name).profile for name in profile]
    scores = score_all(found.measurements, predictors(profiles))
    if plot is not None:
        draw(scores, found, plot)
    if as_json:
        rivals = [[found.measurements[number] for number in one] for one in group_by_shape(found.measurements).values()]
        floor = noise_floor(rivals)
        noise = None if floor is None else asdict(floor)
        document = {"profiles": [one.name for one in profiles], "scores": plain(scores), "noise": noise}
        print(json.dumps(document, indent=1))
    else:
        print(table(scores, found, profiles))
    for text in circumstances(found, profiles):
        print(paragraph(text), file=sys.stderr)
