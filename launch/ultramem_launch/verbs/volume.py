"""``ultramem volume``: the paper's formulas, and its Figure 9 beside the same map by time."""

import json
import math
from pathlib import Path
from typing import Annotated

import typer


def volume(
    tokens: Annotated[int, typer.Option("--tokens", help="Of a rank in a micro-batch.")] = 4096,
    top_m: Annotated[int, typer.Option("--top-m", help="Rows that a token reads, all heads together.")] = 84,
    value_dim: Annotated[int, typer.Option("--value-dim", help="Width of a row.")] = 1024,
    ranks: Annotated[int, typer.Option("--ranks", help="That share the table.")] = 64,
    expansion: Annotated[
        int, typer.Option("--expansion", help="Pooled vectors of a token (IVE); the paper leaves them out.")
    ] = 1,
    cores: Annotated[int, typer.Option("--cores", help="Scores of a row (MCS); the paper leaves them out.")] = 1,
    figure9: Annotated[
        Path | None, typer.Option("--figure9", metavar="OUT.png", help="Draw break-even widths, and the map by time.")
    ] = None,
    cluster: Annotated[
        str, typer.Option("--cluster", help="For the map by time; its ranks a node and speeds count, not its nodes.")
    ] = "dgx-a100-80g",
    num_rows: Annotated[int, typer.Option("--num-rows", help="Rows of the table, for the map by time.")] = 3_200_521,
    as_json: Annotated[bool, typer.Option("--json", help="The numbers as a JSON document.")] = False,
) -> None:
    """Bytes that a rank sends in the forward pass by the formulas of the UltraMem paper (section 4), number-wise and
    dimension-wise, and where they are equal: its Figure 9.

    Example: ultramem volume --tokens 4096 --top-m 84 --value-dim 1024 --ranks 64 --json
    """
    from ultramem_megatron.planning.cluster import parse_cluster
    from ultramem_megatron.planning.figure9 import numbers
    from ultramem_megatron.planning.paper_cost import check_volume, volume_numbers

    sizes = {"tokens": tokens, "top_m": top_m, "value_dim": value_dim, "ranks": ranks}
    sizes |= {"expansion": expansion, "cores": cores, "num_rows": num_rows}
    check_volume(sizes)
    found = volume_numbers(tokens, top_m, value_dim, ranks, expansion, cores)
    document: dict[str, object] = {name: None if math.isinf(value) else value for name, value in found.items()}
    if figure9 is not None:
        from ultramem_launch.figure9 import draw

        document["figure9"] = numbers(parse_cluster(cluster), tokens, top_m, num_rows, expansion, cores)
        draw(document["figure9"], figure9)
    print(json.dumps(document, indent=1) if as_json else _text(found, ranks, value_dim, figure9))


def _text(found: dict[str, float], ranks: int, value_dim: int, figure9: Path | None) -> str:
    from ultramem_megatron.planning.page import paragraph
    from ultramem_megatron.units import MIB

    rows, columns = found["number_wise_bytes"] / MIB, found["dimension_wise_bytes"] / MIB
    width, most = found["break_even_value_dim"], found["break_even_ranks"]
    text = (
        f"A rank of {ranks} sends {rows:,.2f} MiB number-wise and {columns:,.2f} MiB dimension-wise in a forward pass. "
    )
    if math.isinf(width):
        text += "Number-wise sends less at every width."
    else:
        text += (
            f"Dimension-wise sends less where rows are wider than {width:,.1f}; at a width of {value_dim}, up to "
            f"{most:,.0f} ranks. These are bytes: `ultramem plan` reckons in time."
        )
    drawn = f"\nDrawn to {figure9}." if figure9 is not None else ""
    return paragraph(text) + drawn
