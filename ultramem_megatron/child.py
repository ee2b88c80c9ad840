"""What a child process asks of Linux; nothing elsewhere."""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG, PR_SET_NAME = 1, 15  # linux/prctl.h


def die_with_parent(parent: int, number: int = signal.SIGKILL) -> None:
    """Have this process killed, or sent another signal, when ``parent`` ends.

    A launcher that is killed with SIGKILL cannot end its ranks.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
        if os.getppid() != parent:  # it was killed before the kernel knew
            os._exit(1)


def name_process(name: str) -> None:
    """``name``: as ``top`` and ``ps -c`` show it, at most 15 characters."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_NAME, name.encode())
