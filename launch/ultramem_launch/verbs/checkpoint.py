"""``ultramem checkpoint``: look at checkpoints, check them, and cut them for another number of ranks. No GPU needed."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(help="Look at checkpoints, check them, rewrite them for another layout.", no_args_is_help=True)

Folder = Annotated[
    Path, typer.Argument(metavar="DIR", help="A checkpoint, or a folder of them or a run, whose newest is taken.")
]


class TableCut(StrEnum):
    """Partitions that cut a table."""

    NUMBER_WISE = "number_wise"
    NUMBER_WISE_POOLED = "number_wise_pooled"
    DIMENSION_WISE = "dimension_wise"
    GRID = "grid"


@app.command("info")
def info(
    folder: Folder, as_json: Annotated[bool, typer.Option("--json", help="The facts as a JSON object.")] = False
) -> None:
    """How far a checkpoint is, what wrote it, and what lies in it; which ones beside it are set aside, and why.

    Example: ultramem checkpoint info runs/quickstart
    """
    from ultramem_megatron.checkpoint.describe import describe
    from ultramem_megatron.checkpoint.store import choose_folder

    facts = describe(choose_folder(folder))
    print(json.dumps(facts, indent=2) if as_json else _text(facts))


@app.command("verify")
def verify(
    folder: Folder, as_json: Annotated[bool, typer.Option("--json", help="The verdict as a JSON object.")] = False
) -> None:
    """Read a checkpoint through on this process and compare every file and every tensor with what was written.
    Exit status 2 if anything differs. Needs memory for some 100 MB, whatever the size of the checkpoint.

    Example: ultramem checkpoint verify runs/quickstart/checkpoints/step_00000100
    """
    from ultramem_megatron.checkpoint.integrity import describe_damage
    from ultramem_megatron.checkpoint.store import choose_folder
    from ultramem_megatron.checkpoint.verify import verify as read_through
    from ultramem_megatron.errors import CheckpointError

    chosen = choose_folder(folder)
    verdict = read_through(chosen)
    if as_json:
        facts = {"files": verdict.files, "tensors": verdict.tensors, "damage": verdict.damage}
        print(json.dumps({"folder": str(chosen), **facts}, indent=2))
    if verdict.damage:
        raise CheckpointError(describe_damage(chosen, verdict.damage))
    if not as_json:
        what = f"{verdict.files} files and {verdict.tensors} tensors are what was written"
        if not verdict.tensors:
            what = "all files have their size and all tensors their parts; it is too old to say more"
        print(f"{chosen}: {what}")


@app.command("reshard")
def reshard(
    folder: Folder,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of checkpoints to write into.")],
    ranks: Annotated[int, typer.Option("--ranks", help="Ranks of the memory group to cut tables for.")],
    partition: Annotated[
        TableCut, typer.Option("--partition", help="How those ranks share a table.")
    ] = TableCut.NUMBER_WISE,
    node_size: Annotated[
        int | None, typer.Option("--node-size", min=1, help="For a grid: those of the ranks that count as one node.")
    ] = None,
    block_mib: Annotated[int, typer.Option("--block-mib", min=1, help="Rows of a table held at a time, in MiB.")] = 64,
) -> None:
    """Rewrite a checkpoint so that each rank of another layout finds its part of every table in one file. The content
    stays the same, and any layout loads either; loading is quicker and needs less memory. Holds two blocks of rows.

    A run goes on from the result with checkpoint.load=DIR.

    Example: ultramem checkpoint reshard runs/quickstart --out resharded --ranks 8 --partition dimension_wise
    """
    from ultramem_megatron.checkpoint import reshard as resharding
    from ultramem_megatron.checkpoint.store import choose_folder
    from ultramem_megatron.config.memory import PartitionName
    from ultramem_megatron.errors import CheckpointError
    from ultramem_megatron.planning.table_cut import table_parts
    from ultramem_megatron.units import MIB

    if (node_size is None) == (partition is TableCut.GRID):
        raise CheckpointError("--partition grid needs --node-size, and no other partition has it")
    cut = resharding.Cut(*table_parts(PartitionName(partition.value), ranks, node_size or 1))
    print(resharding.reshard(choose_folder(folder), out, cut, block_mib * MIB))


def _text(facts: dict[str, Any]) -> str:
    from ultramem_megatron.units import format_bytes

    plan, dense = facts["plan"], facts["dense"]["bytes"]
    lines = [
        facts["folder"],
        f"plan {plan['hash']}",
        f"step {facts['step']:,}, {facts['consumed_samples']:,} samples, {facts['consumed_tokens']:,} tokens",
        f"written by {facts['world_size']} ranks; tables {' and '.join(plan['tables']) or 'none'}",
        f"{facts['files']} files, {format_bytes(facts['bytes'])}: dense weights {format_bytes(dense)}, "
        f"optimizer {format_bytes(facts['optimizer_bytes'])}",
    ]
    for table in facts["tables"]:
        lines.append(
            f"  {table['name']}: {table['rows']:,} x {table['columns']} {table['dtype']}, "
            f"{format_bytes(table['bytes'])} and {format_bytes(table['optimizer_bytes'])} of optimizer state, "
            f"{table['pieces']} pieces in {table['files']} files"
        )
    lines.append(", ".join(f"{name} {version}" for name, version in facts["versions"].items()))
    if not facts["verifiable"]:
        lines.append("too old to be verified: it has no hashes and digests")
    return "\n".join([*lines, *facts["set_aside"]])
