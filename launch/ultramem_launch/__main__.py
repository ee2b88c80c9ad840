"""The ``ultramem`` command. Importing this file must stay cheap: no torch until a verb needs it."""

import io
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import NoReturn

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
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a path may hold what this terminal cannot show
    if not _is_rank():
        # what `finally` removes would stay; pretrain and the launchers have handlers of their own
        signal.signal(signal.SIGTERM, _end_by_signal)
    try:
        _run_verb()
    except (RunFailure, UltraMemError) as error:
        if "--debug" in sys.argv and isinstance(error, UltraMemError):
            raise
        from ultramem_launch.ending import RULES, outcome_of

        outcome = outcome_of(error)
        _tell(f"{type(error).__name__ if isinstance(error, UltraMemError) else outcome}: {error}")
        _leave(RULES[outcome].exit_status)


def _run_verb() -> None:
    """Raises as errors of the user what the operating system refuses."""
    try:
        try:
            app()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # whoever read has seen enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(exit_codes.FAILED)
    except OSError as error:
        from ultramem_megatron.file_failures import is_mendable, named_failure

        if isinstance(error, UltraMemError) or not is_mendable(error):
            raise
        if error.filename is not None:
            raise named_failure(error, doing="used") from error
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # else Python tries once more at its end, and fails
        raise named_failure(error, Path("standard output")) from error


def _end_by_signal(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


def _leave(status: int) -> NoReturn:
    if _is_rank():
        # at once: other ranks may wait for this one, and a clean-up that talks to them would hang
        sys.stdout.flush()
        os._exit(status)
    sys.exit(status)


def _is_rank() -> bool:
    from ultramem_launch.place import is_one_of_several

    try:
        return is_one_of_several()
    except UltraMemError:  # half of a launcher's variables; whoever needs them says so
        return True


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
