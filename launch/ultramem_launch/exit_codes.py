"""What the exit status of a run means, for people and for the scheduler."""

FINISHED = 0
FAILED = 1
"""An exception, with its traceback: also what Python itself ends with."""
BAD_INPUT = 2
TERMINATED = 128 + 15
"""A verb that makes files was ended by SIGTERM; what was unfinished is gone (the shell's number for that signal)."""
STOPPED = 75
"""Saved and ended early on a signal; start again to go on (``EX_TEMPFAIL`` of sysexits.h)."""
HUNG = 80
"""A rank made no progress for too long."""
DIVERGED = 81
"""The loss is no longer a number, or far off, and going back did not help."""
OUT_OF_DISK = 82
"""There was no room for a checkpoint."""
BAD_NODE = 83
"""A node did not pass the checks before the run; nothing was trained."""
NODE_LOST = 84
"""A node stopped answering."""
NOT_MET = 85
"""The ranks did not reach each other; nothing was trained."""
INTERRUPTED = 130
"""Ctrl-C, and nothing was saved: the second one, or before training began (128 and SIGINT, as a shell has it)."""
