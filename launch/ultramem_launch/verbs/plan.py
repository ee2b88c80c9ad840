"""``ultramem plan``: how the memory tables are split over a cluster, and why."""

import sys
import textwrap
from pathlib import Path
from typing import Annotated

import typer

DEFAULT_CLUSTER = "local:4"


def plan(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="Name of a recipe, or path of a YAML file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings that replace the file's.")
    ] = None,
    cluster: Annotated[
        str, typer.Option("--cluster", help="local:RANKS, dgx-a100-80g:NODES or dgx-a100-40g:NODES.")
    ] = DEFAULT_CLUSTER,
    explain: Annotated[
        bool, typer.Option("--explain", help="All candidates, rejections, memory, what is not modelled.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The plan as a JSON document.")] = False,
    save: Annotated[Path | None, typer.Option("--save", metavar="FILE", help="Write the plan as JSON, too.")] = None,
) -> None:
    """Choose how the memory tables are split over the ranks of a cluster: number-wise (rows), dimension-wise
    (columns) or replicated, and over how many ranks. Needs no GPU and no PyTorch.

    Example: ultramem plan quickstart memory.value_dim=128 --cluster dgx-a100-80g:2 --explain
    """
    from ultramem_launch.configs import load_config
    from ultramem_megatron.planning import report
    from ultramem_megatron.planning.choose import choose_plan
    from ultramem_megatron.planning.cluster import parse_cluster
    from ultramem_megatron.planning.staleness import stale_warning

    machines = parse_cluster(cluster)
    chosen = choose_plan(load_config(config, overrides or []), machines)
    stale = stale_warning(machines)
    if save is not None:
        chosen.save(save)
    if as_json:
        print(chosen.to_json())
        if stale:
            print(stale, file=sys.stderr)
    else:
        print(report.explain(chosen) if explain else report.summary(chosen))
        if stale:
            print(f"\n{textwrap.fill(stale, report.WIDTH)}")
        if save is not None:
            print(f"\nSaved to {save}.")
