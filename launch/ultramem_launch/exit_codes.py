"""What the exit status of a run means, for people and for the scheduler."""

FINISHED = 0
BAD_INPUT = 2
STOPPED = 75
"""Saved and ended early on a signal; start again to go on (``EX_TEMPFAIL`` of sysexits.h)."""
