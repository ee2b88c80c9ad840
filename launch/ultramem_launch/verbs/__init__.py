"""One file a verb. At import a verb file may load typer and the standard library, nothing heavy."""
