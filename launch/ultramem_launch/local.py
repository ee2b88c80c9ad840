"""``--local N``: N processes of a run on this machine.

torchrun would do, but it turns every exit status into 1, drops SIGUSR1, and leaves the ranks behind when it is itself
killed; a run needs its own status to arrive, the early warning of a scheduler, and no orphans.
"""

import functools
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from ultramem_launch import exit_codes
from ultramem_launch.place import RENDEZVOUS
from ultramem_launch.template import STOP_SIGNALS, ForkedProcess, Template
from ultramem_megatron.child import die_with_parent
from ultramem_megatron.errors import LaunchError
from ultramem_megatron.files import remove_leftovers, temporary_folder

logger = logging.getLogger(__name__)

ERROR_FILE = "ULTRAMEM_ERROR_FILE"
"""Where a rank leaves the paragraph of an error, so that it is printed once and not by every rank."""

TEMPORARY = "ultramem"
"""Part of the name of a run's temporary folder."""
POLL_SECONDS = 0.02
"""Short, so that the rank that failed first is told from those that fail because it is gone."""
GRACE_SECONDS = 2.0
"""How long ranks that outlive a failed one may take to end: most wait for it in a collective and never will."""

ULTRAMEM = (sys.executable, "-m", "ultramem_launch")

Process = subprocess.Popen[bytes] | ForkedProcess


def ultramem(imports: Sequence[str]) -> Template:
    """The command itself, for ranks that need the modules ``imports``."""
    from ultramem_launch.__main__ import main

    return Template(main, imports)


def run_local_processes(
    num_processes: int,
    arguments: Sequence[str],
    program: Sequence[str] | Template = ULTRAMEM,
    on_killed: Callable[[int, int], None] = lambda rank, number: None,
    variables: Mapping[str, str] = MappingProxyType({}),
) -> int:
    """Start ``python -m ultramem_launch ARGUMENTS``, or another ``program`` with them, as each rank and wait for all.

    Signals that ask a run to stop are handed on; a second Ctrl-C ends all ranks at once. When a rank fails the others
    are ended.

    Args:
        num_processes: Ranks.
        arguments: Of each rank.
        program: What they are given to: a command, or what is forked (``ultramem``) where that can be done.
        on_killed: Called with the rank and the signal when one ended a rank and nobody had asked for it: such a rank
            says nothing itself, and what the others say is that a connection broke.
        variables: Of the environment of all ranks, beside those of this process.

    Returns:
        The exit status of the run: that of the first rank that failed, else of rank 0.

    Raises:
        LaunchError: ``num_processes`` is not positive.
    """
    if num_processes < 1:
        raise LaunchError(f"--local {num_processes} must be at least 1")
    temporary = Path(tempfile.gettempdir())
    remove_leftovers(temporary, TEMPORARY)
    with temporary_folder(temporary, TEMPORARY) as folder:
        signals = _Signals()
        start = _starter(program, arguments)
        environments = [{**variables, **_environment(rank, num_processes, folder)} for rank in range(num_processes)]
        ranks = [start(environment) for environment in environments] if not signals.asked else []
        signals.hand_on_to(ranks)

        def killed(rank: int, number: int) -> None:
            if number not in signals.asked and not signals.leaves_at_once:
                on_killed(rank, number)

        status = _wait_for_all(ranks, killed) if ranks else 128 + min(signals.asked)
        if signals.leaves_at_once:
            return exit_codes.INTERRUPTED
        if status - 128 in signals.asked & {signal.SIGTERM, signal.SIGUSR1}:
            # before training it ends a rank at once: nothing was done yet, and to start again is the answer
            status = exit_codes.STOPPED
        for error in sorted(folder.glob("error-*"))[:1]:
            print(error.read_text(), end="", file=sys.stderr)
        return status


def _environment(rank: int, world_size: int, folder: Path) -> dict[str, str]:
    """What a rank is told, beside what this process has."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        RENDEZVOUS: f"file://{folder}/rendezvous",
        ERROR_FILE: str(folder / f"error-{rank:05d}"),
    }


def _starter(program: Sequence[str] | Template, arguments: Sequence[str]) -> Callable[[dict[str, str]], Process]:
    """What starts a rank, given its environment."""
    if isinstance(program, Template):
        hazard = program.load()
        if not hazard:
            return functools.partial(program.fork, arguments)
        logger.info("each rank imports for itself, as this process cannot be forked: %s", hazard)
        program = ULTRAMEM
    return functools.partial(_start_command, [*program, *arguments])


def _start_command(command: Sequence[str], environment: dict[str, str]) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        command,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        preexec_fn=functools.partial(die_with_parent, os.getpid()),
    )


class _Signals:
    """Those that ask a run to stop. From its making on they are remembered, and handed on to ranks once there are."""

    def __init__(self) -> None:
        self.asked: set[int] = set()
        self.leaves_at_once = False
        self._ranks: Sequence[Process] = ()
        for number in STOP_SIGNALS:
            signal.signal(number, self._receive)

    def hand_on_to(self, ranks: Sequence[Process]) -> None:
        """All ranks have been started."""
        self._ranks = ranks
        for number in sorted(self.asked):
            self._hand_on(number)

    def _receive(self, number: int, frame: object) -> None:
        if number == signal.SIGINT and number in self.asked:
            self._leave()
            return
        self.asked.add(number)
        self._hand_on(number)

    def _leave(self) -> None:
        self.leaves_at_once = True
        for rank in self._ranks:
            if rank.poll() is None:
                rank.kill()
        if not self._ranks:  # they are being prepared, which may take a while
            sys.exit(exit_codes.INTERRUPTED)

    def _hand_on(self, number: int) -> None:
        for rank in self._ranks:
            if rank.poll() is None:
                rank.send_signal(number)


def _wait_for_all(ranks: Sequence[Process], on_killed: Callable[[int, int], None]) -> int:
    failed = 0
    while None in (codes := [rank.poll() for rank in ranks]):
        failed = next((code for code in codes if code not in (None, *_GOOD)), None) or 0
        if failed:
            killed = [(rank, -code) for rank, code in enumerate(codes) if code is not None and code < 0]
            _end(ranks)
            for rank, number in killed[:1]:
                on_killed(rank, number)
            break
        time.sleep(POLL_SECONDS)
    last = [rank.wait() for rank in ranks]
    failed = failed or next((code for code in last if code not in _GOOD), 0)
    # killed by a signal: as a shell reports it
    return 128 - failed if failed < 0 else failed or last[0]


_GOOD = (exit_codes.FINISHED, exit_codes.STOPPED)


def _end(ranks: Sequence[Process]) -> None:
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
