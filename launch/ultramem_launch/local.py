"""``--local N``: N processes of a run on this machine.

torchrun would do, but it turns every exit status into 1, drops SIGUSR1, and leaves the ranks behind when it is itself
killed; a run needs its own status to arrive, the early warning of a scheduler, and no orphans.
"""

import ctypes
import functools
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ultramem_launch import exit_codes
from ultramem_launch.place import RENDEZVOUS
from ultramem_megatron.errors import LaunchError

ERROR_FILE = "ULTRAMEM_ERROR_FILE"
"""Where a rank leaves the paragraph of an error, so that it is printed once and not by every rank."""

POLL_SECONDS = 0.02
"""Short, so that the rank that failed first is told from those that fail because it is gone."""
GRACE_SECONDS = 2.0
"""How long ranks that outlive a failed one may take to end: most wait for it in a collective and never will."""

PR_SET_PDEATHSIG = 1  # linux/prctl.h


ULTRAMEM = (sys.executable, "-m", "ultramem_launch")


def run_local_processes(
    num_processes: int,
    arguments: Sequence[str],
    program: Sequence[str] = ULTRAMEM,
    on_killed: Callable[[int, int], None] = lambda rank, number: None,
) -> int:
    """Start ``python -m ultramem_launch ARGUMENTS``, or another ``program`` with them, as each rank and wait for all.

    Signals that ask a run to stop are handed on. When a rank fails the others are ended.

    Args:
        num_processes: Ranks.
        arguments: Of each rank.
        program: What they are given to.
        on_killed: Called with the rank and the signal when one ended a rank and nobody had asked for it: such a rank
            says nothing itself, and what the others say is that a connection broke.

    Returns:
        The exit status of the run: that of the first rank that failed, else of rank 0.

    Raises:
        LaunchError: ``num_processes`` is not positive.
    """
    if num_processes < 1:
        raise LaunchError(f"--local {num_processes} must be at least 1")
    with tempfile.TemporaryDirectory(prefix="ultramem-") as folder:
        ranks = [
            _start_rank(rank, num_processes, [*program, *arguments], Path(folder)) for rank in range(num_processes)
        ]
        asked = _hand_on_signals(ranks)

        def killed(rank: int, number: int) -> None:
            if number not in asked:
                on_killed(rank, number)

        status = _wait_for_all(ranks, killed)
        if status - 128 in asked & {signal.SIGTERM, signal.SIGUSR1}:
            # before training it ends a rank at once: nothing was done yet, and to start again is the answer
            status = exit_codes.STOPPED
        for error in sorted(Path(folder).glob("error-*"))[:1]:
            print(error.read_text(), end="", file=sys.stderr)
        return status


def _start_rank(rank: int, world_size: int, command: Sequence[str], folder: Path) -> "subprocess.Popen[bytes]":
    environment = {
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        RENDEZVOUS: f"file://{folder}/rendezvous",
        ERROR_FILE: str(folder / f"error-{rank:05d}"),
    }
    die_with_us = functools.partial(_die_with_parent, os.getpid())
    return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, preexec_fn=die_with_us)


def _die_with_parent(parent: int) -> None:
    # a launcher killed with SIGKILL cannot end its ranks; the kernel can
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it was killed before the kernel knew
            os._exit(1)


def _hand_on_signals(ranks: "list[subprocess.Popen[bytes]]") -> set[int]:
    """Returns the signals handed on so far; the set grows."""
    asked: set[int] = set()

    def hand_on(number: int, frame: object) -> None:
        asked.add(number)
        for rank in ranks:
            if rank.poll() is None:
                rank.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, hand_on)
    return asked


def _wait_for_all(ranks: "list[subprocess.Popen[bytes]]", on_killed: Callable[[int, int], None]) -> int:
    failed = 0
    while None in [rank.poll() for rank in ranks]:  # a list: each of them must be asked
        failed = next((r.returncode for r in ranks if r.returncode not in (None, *_GOOD)), 0)
        if failed:
            killed = [(rank, -r.returncode) for rank, r in enumerate(ranks) if (r.returncode or 0) < 0]
            _end(ranks)
            for rank, number in killed[:1]:
                on_killed(rank, number)
            break
        time.sleep(POLL_SECONDS)
    failed = failed or next((r.returncode for r in ranks if r.returncode not in _GOOD), 0)
    # killed by a signal: as a shell reports it
    return 128 - failed if failed < 0 else failed or ranks[0].returncode


_GOOD = (exit_codes.FINISHED, exit_codes.STOPPED)


def _end(ranks: "list[subprocess.Popen[bytes]]") -> None:
    deadline = time.monotonic() + GRACE_SECONDS
    for rank in ranks:
        if rank.poll() is None:
            rank.terminate()
    for rank in ranks:
        try:
            rank.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            rank.kill()  # waits in a collective for the rank that is gone
            rank.wait()
