"""``ultramem sweep``: maps of strategy and step time."""

import csv
import io
import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from ultramem_megatron.errors import PlanError


def sweep(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="Name of a recipe, or path of a YAML file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings that replace the file's.")
    ] = None,
    cluster: Annotated[
        str, typer.Option("--cluster", help="A cluster as for `ultramem plan`; its number of nodes does not matter.")
    ] = "dgx-a100-80g",
    nodes: Annotated[str, typer.Option("--nodes", help="Numbers of nodes (on CPUs: of processes).")] = "1,8,64,512",
    parallel_sizes: Annotated[
        str, typer.Option("--parallel-sizes", help="Ranks P that share a table; left out, the planner chooses.")
    ] = "",
    tokens: Annotated[str, typer.Option("--tokens", help="Tokens of a rank in a micro-batch.")] = "",
    top_m: Annotated[str, typer.Option("--top-m", help="Slots kept for each head and token.")] = "",
    value_dim: Annotated[str, typer.Option("--value-dim", help="Widths of a row.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="All points as a JSON document.")] = False,
    csv_file: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Write all points as CSV, too.")
    ] = None,
) -> None:
    """Which strategy is fastest, and how long a step takes, over nodes, P, tokens, top-m and width. Lists are written
    with commas; the tokens of an optimizer step stay as near to the config's as the ranks allow. Needs no GPU.

    Example: ultramem sweep ultramem-1.6b-x12 --nodes 8,64,512 --tokens 1024,4096 --value-dim 512,1024 --csv map.csv
    """
    from ultramem_launch.configs import load_config
    from ultramem_launch.progress import show_progress
    from ultramem_megatron.files import check_can_write, write_text
    from ultramem_megatron.planning.cluster import parse_cluster
    from ultramem_megatron.planning.sweep import Axes, check_axes
    from ultramem_megatron.planning.sweep import sweep as rows_of

    lists = {"nodes": nodes, "parallel_sizes": parallel_sizes, "tokens": tokens, "top_m": top_m, "value_dim": value_dim}
    axes = Axes(**{name: _numbers(name, text) for name, text in lists.items()})
    check_axes(axes)
    if csv_file is not None:
        check_can_write(csv_file)
    rows = []
    with show_progress() as show:
        show(f"{axes.size} points", 0.0)
        for row in rows_of(load_config(config, overrides or []), parse_cluster(cluster), axes):
            rows.append(row)
            show(f"{axes.size} points", len(rows) / axes.size)
    plain = [row.to_dict() for row in rows]
    if csv_file is not None:
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(plain[0]))
        writer.writeheader()
        writer.writerows(plain)
        write_text(csv_file, text.getvalue())
    print(json.dumps({"cluster": cluster, "rows": plain}, indent=1) if as_json else _table(plain))
    if csv_file is not None:
        print(f"Written to {csv_file}.", file=sys.stderr)


def _numbers(name: str, text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    bad = [part for part in parts if not part.isdecimal()]
    if bad or (name == "nodes" and not parts):
        option = name.replace("_", "-")
        raise PlanError(f'--{option} = "{text}" is not a list of numbers; write it as in --{option} 8,16')
    return tuple(map(int, parts))


def _table(rows: list[dict[str, int | float | str]]) -> str:
    from ultramem_megatron.planning.page import WIDTH, aligned, short_seconds
    from ultramem_megatron.units import GIB

    cells = [["nodes", "ranks", "tokens", "top-m", "width", "P", "step", "waiting", "HBM GiB", "by time (by bytes)"]]
    for row in rows:
        sizes = [str(row[name]) for name in ("nodes", "ranks", "tokens", "top_m", "value_dim", "P")]
        if row["reason"]:
            cells.append([*sizes, "-", "-", "-", str(row["reason"])])
            continue
        times = [short_seconds(float(row[name])) for name in ("step_seconds", "exposed_seconds")]
        spread = ", spread" if row["placement"] == "spread" else ""
        verdict = f"{row['strategy']}{spread} ({row['strategy_by_bytes']})"
        cells.append([*sizes, *times, f"{float(row['hbm_bytes']) / GIB:.1f}", verdict])
    lines = aligned(cells).splitlines()
    return "\n".join(line if len(line) <= WIDTH else f"{line[: WIDTH - 3]}..." for line in lines)
