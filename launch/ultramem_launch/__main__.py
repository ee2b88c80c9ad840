"""The ``ultramem`` command. Importing this file must stay cheap: no torch until a verb needs it."""

import os
import sys
from pathlib import Path

import typer

from ultramem_launch import exit_codes
from ultramem_launch.verbs import (
    calibrate,
    checkpoint,
    data,
    doctor,
    eval,
    generate,
    info,
    job,
    monitor,
    plan,
    pretrain,
    recipes,
    submit,
    sweep,
    validate,
    volume,
)
from ultramem_megatron.errors import RunFailure, UltraMemError, one_paragraph

app = typer.Typer(
    name="ultramem",
    help="Pretrain language models with ultra-sparse memory layers (UltraMem) on megatron-core.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(data.app, name="data")
app.add_typer(checkpoint.app, name="checkpoint")
for verb in (
    doctor.doctor,
    info.info,
    plan.plan,
    volume.volume,
    sweep.sweep,
    calibrate.calibrate,
    validate.validate,
    pretrain.pretrain,
    submit.submit,
    job.status,
    job.logs,
    job.cancel,
    job.requeue,
    generate.generate,
    monitor.monitor,
    recipes.recipes,
):
    app.command()(verb)
app.command("eval")(eval.evaluate)


@app.callback()
def _options(debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error.")) -> None:
    """Options before the verb; ``main`` reads ``--debug`` itself."""


def main() -> None:
    """Run a verb. What the user can mend is printed as one paragraph, exit code 2."""
    try:
        app()
    except RunFailure as error:
        from ultramem_launch.ending import RULES, outcome_of

        outcome = outcome_of(error)
        _tell(f"{outcome}: {error}")
        sys.stdout.flush()
        os._exit(RULES[outcome].exit_status)
    except UltraMemError as error:
        if "--debug" in sys.argv:
            raise
        _tell(f"{type(error).__name__}: {error}")
        # at once: other ranks may wait for this one, and a clean-up that talks to them would hang
        sys.stdout.flush()
        os._exit(exit_codes.BAD_INPUT)


def _tell(text: str) -> None:
    from ultramem_launch.local import ERROR_FILE

    line = one_paragraph(text) + "\n"
    file = os.environ.get(ERROR_FILE)
    if file:
        Path(file).write_text(line)
    else:
        sys.stderr.write(line)
        sys.stderr.flush()


if __name__ == "__main__":
    main()
