"""``ultramem eval``: what the newest checkpoint of a run has learnt."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from ultramem_launch.progress import show_progress

if TYPE_CHECKING:
    from rich.table import Table

    from ultramem_megatron.training.evaluate import Evaluation, LossEvaluation, RecallEvaluation


def evaluate(
    run_dir: Path = typer.Option(..., "--run-dir", help="Folder of the run."),
    task: list[str] = typer.Option(..., "--task", help="phonebook, world, gloss or loss; may be repeated."),
    questions: int = typer.Option(1000, "--questions", min=1, help="Most questions asked of a recall task."),
    json_output: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Recall tasks and validation loss of the newest checkpoint, on one process.

    A recall task asks for facts of the training text in other words: each of four answers is scored by its
    log-likelihood, and chance is 0.25. `ultramem data recall` adds such tasks to a data folder. loss is the validation
    loss of each source. Results are also written to RUN_DIR/eval/TASK.json.

    Example: ultramem eval --run-dir runs/first --task phonebook --task loss
    """
    from ultramem_launch.place import find_place, refuse_several
    from ultramem_launch.run_folder import refuse_missing
    from ultramem_megatron.data.recall.registry import EVALUATIONS, check_name
    from ultramem_megatron.files import check_folder
    from ultramem_megatron.parallel.accelerators import refuse_wrong_apex
    from ultramem_megatron.parallel.process import start_process

    refuse_several("eval")
    for name in task:
        check_name(name, EVALUATIONS)
    refuse_missing(run_dir)
    check_folder(run_dir / "eval")
    refuse_wrong_apex()
    device = start_process(find_place())
    from ultramem_megatron.parallel.groups import destroy_groups
    from ultramem_megatron.training.evaluate import evaluate as evaluate_run

    with show_progress() as progress:
        results = evaluate_run(run_dir, task, device, questions, progress)
    if json_output:
        _print_json(results)
    else:
        print_tables(results)
    destroy_groups()


def _print_json(results: "list[Evaluation]") -> None:
    import json
    from dataclasses import asdict

    print(json.dumps([asdict(result) for result in results], indent=2))


def print_tables(results: "Sequence[Evaluation]") -> None:
    """For people; ``--json`` is for machines."""
    from rich.console import Console

    from ultramem_megatron.training.evaluate import LossEvaluation, RecallEvaluation

    console = Console(highlight=False)
    recall = [result for result in results if isinstance(result, RecallEvaluation)]
    if recall:
        console.print(_recall_table(recall))
    for result in results:
        if isinstance(result, LossEvaluation):
            console.print(_loss_table(result))
    console.print(f"step {results[0].step}, {results[0].consumed_tokens:,} training tokens")


def _recall_table(results: "Sequence[RecallEvaluation]") -> "Table":
    table = _table("task", "questions", "accuracy", "normalised", "chance", "nats per answer token")
    for one in results:
        accuracy = f"{one.accuracy:.3f} ± {one.standard_error:.3f}"
        numbers = (f"{one.normalised_accuracy:.3f}", f"{one.chance:.2f}", f"{one.nats:.3f}")
        table.add_row(one.task, f"{one.questions:,}", accuracy, *numbers)
    return table


def _loss_table(result: "LossEvaluation") -> "Table":
    table = _table("validation loss", "nats per token")
    for source, loss in {**result.source_losses, "mean": result.loss}.items():
        table.add_row(source, f"{loss:.4f}")
    return table


def _table(*columns: str) -> "Table":
    from rich.table import Table

    table = Table(*columns, box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    return table
