"""``ultramem generate``: text from the newest checkpoint of a run."""

from pathlib import Path

import typer


def generate(
    run_dir: Path = typer.Option(..., "--run-dir", help="Folder of the run."),
    prompt: str = typer.Option("The", "--prompt", help="Text to go on from."),
    tokens: int = typer.Option(40, "--tokens", min=1, help="Tokens to write."),
    temperature: float = typer.Option(0.8, "--temperature", min=0.0, help="0 takes the likeliest token each time."),
    seed: int = typer.Option(0, "--seed", help="Of the draws."),
) -> None:
    """Write a few words with a trained model, on one process.

    Example: ultramem generate --run-dir runs/first --prompt "The capital of France"
    """
    from ultramem_launch.place import find_place, refuse_several
    from ultramem_launch.run_folder import refuse_missing
    from ultramem_megatron.parallel.accelerators import refuse_wrong_apex
    from ultramem_megatron.parallel.process import start_process

    refuse_several("generate")
    refuse_missing(run_dir)
    refuse_wrong_apex()
    device = start_process(find_place())
    from ultramem_megatron.parallel.groups import destroy_groups
    from ultramem_megatron.training.trained_model import open_trained_model

    model = open_trained_model(run_dir, device)
    typer.echo(prompt + model.continue_text(prompt, tokens=tokens, temperature=temperature, seed=seed))
    destroy_groups()
