"""``ultramem plan``: how the memory tables are split over a cluster, and why."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ultramem_megatron.planning.plan import CostModel

DEFAULT_CLUSTER = "local:4"


def plan(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="Name of a recipe, or path of a YAML file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings that replace the file's.")
    ] = None,
    cluster: Annotated[
        str,
        typer.Option(
            "--cluster",
            help="local:RANKS; dgx-a100-40g, dgx-a100-80g, hgx-h100 or hgx-h200 with :NODES, or with :slurm for "
            "those of the allocation; or the path of a profile that `ultramem calibrate` wrote.",
        ),
    ] = DEFAULT_CLUSTER,
    model: Annotated[
        str, typer.Option("--model", help="Rank by `time` (seconds of a step) or by `bytes` (as the paper does).")
    ] = "time",
    skew: Annotated[
        float, typer.Option("--skew", help="Zipf exponent of the picks; 0: all rows are equally likely.")
    ] = 0.0,
    explain: Annotated[
        bool, typer.Option("--explain", help="Why, all candidates and rejections, what is not modelled.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The plan as a JSON document.")] = False,
    save: Annotated[Path | None, typer.Option("--save", metavar="FILE", help="Write the plan as JSON, too.")] = None,
) -> None:
    """Choose how the memory tables are split over the ranks of a cluster, over how many ranks and which: by the
    predicted time of a step. Needs no GPU and no PyTorch.

    Example: ultramem plan quickstart memory.value_dim=128 --cluster dgx-a100-80g:2 --explain
    """
    from ultramem_launch.configs import load_config
    from ultramem_megatron.files import check_can_write
    from ultramem_megatron.planning import report
    from ultramem_megatron.planning.choose import choose_plan
    from ultramem_megatron.planning.cluster import parse_cluster
    from ultramem_megatron.planning.page import paragraph
    from ultramem_megatron.planning.skew import check_exponent
    from ultramem_megatron.planning.staleness import stale_warning

    if save is not None:
        check_can_write(save)
    machines = parse_cluster(cluster)
    settings = load_config(config, overrides or [])
    chosen = choose_plan(settings, machines, cost_model=_cost_model(model), zipf_exponent=check_exponent(skew))
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
            print(f"\n{paragraph(stale)}")
        if save is not None:
            print(f"\nSaved to {save}.")


def _cost_model(name: str) -> "CostModel":
    from ultramem_megatron.errors import PlanError
    from ultramem_megatron.planning.plan import CostModel

    if name not in list(CostModel):
        raise PlanError(f"--model {name} is not one of {', '.join(CostModel)}; leave it out for time")
    return CostModel(name)
