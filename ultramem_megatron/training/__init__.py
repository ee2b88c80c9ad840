"""One run: set up, step, loop, hooks."""
