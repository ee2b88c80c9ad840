"""The ``ultramem`` command. Importing this file must stay cheap: no torch until a verb needs it."""

import sys

import typer

from ultramem_megatron.errors import UltraMemError

EXIT_BAD_INPUT = 2

app = typer.Typer(
    name="ultramem",
    help="Pretrain language models with ultra-sparse memory layers (UltraMem) on megatron-core.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def _options(debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error.")) -> None:
    """Options before the verb; ``main`` reads ``--debug`` itself."""


def main() -> None:
    """Run a verb. What the user can mend is printed as one paragraph, exit code 2."""
    try:
        app()
    except UltraMemError as error:
        if "--debug" in sys.argv:
            raise
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(EXIT_BAD_INPUT)


if __name__ == "__main__":
    main()
