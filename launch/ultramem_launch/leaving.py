"""Signals that a rank cannot wait for its main thread with, which may be deep in a collective that never ends.

Before training there is nothing to save: a signal ends the process at once, and the status file says so. In training
the first is a request (``training/stop.py``), confirmed here; a second Ctrl-C ends the process at once.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from ultramem_launch.ending import Ending, Outcome, attempt_of_this_process
from ultramem_launch.template import STOP_SIGNALS

ASKED = "asked to stop by {name}: saves after this step, and ends"
AGAIN = "; Ctrl-C once more leaves at once, without saving"


@contextmanager
def signals_heard(
    rank: int, leave: Callable[[Ending], None], *, counts_interrupts: bool
) -> Iterator[Callable[[], None]]:
    """Hear of stop signals in a thread, whatever the main thread does. For the main thread of a rank.

    Args:
        rank: Of this process; rank 0 alone confirms.
        leave: Called by the thread with why; writes it down and ends the process.
        counts_interrupts: Whether a second SIGINT ends this process. The launcher of ``--local`` counts for its ranks,
            which one Ctrl-C may reach twice: from the terminal, and handed on.

    Yields:
        To be called when training begins, and signals have become requests.
    """
    began = threading.Event()
    hear, tell = os.pipe()
    os.set_blocking(tell, False)
    for number in STOP_SIGNALS:
        signal.signal(number, _only_heard)
    signal.set_wakeup_fd(tell, warn_on_full_buffer=False)

    def heed() -> None:
        asked = False
        while heard := os.read(hear, 1):
            if heard[0] not in STOP_SIGNALS:
                continue
            number = signal.Signals(heard[0])
            if not began.is_set():
                leave(_too_early(number, rank))
            elif asked and number == signal.SIGINT and counts_interrupts:
                leave(_ending(Outcome.INTERRUPTED, "Ctrl-C a second time: ended at once, without saving", rank))
            elif not asked and rank == 0:
                again = AGAIN if number == signal.SIGINT else ""
                print(ASKED.format(name=number.name) + again, file=sys.stderr, flush=True)
            asked = True
        os.close(hear)

    threading.Thread(target=heed, name="signals", daemon=True).start()
    try:
        yield began.set
    finally:
        signal.set_wakeup_fd(-1)
        os.close(tell)  # the thread reads the end


def _only_heard(number: int, frame: FrameType | None) -> None:
    """Without a handler of Python's the thread would not be told."""


def _too_early(number: signal.Signals, rank: int) -> Ending:
    outcome = Outcome.INTERRUPTED if number == signal.SIGINT else Outcome.PREEMPTED
    return _ending(outcome, f"{number.name} came before training began; there was nothing to save", rank)


def _ending(outcome: Outcome, reason: str, rank: int) -> Ending:
    return Ending(outcome=outcome, reason=reason, rank=rank, attempt=attempt_of_this_process())
