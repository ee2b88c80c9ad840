"""Verbs of ``ultramem`` as forks of this process, which has imported what they need."""

import contextlib
import os
import signal
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from ultramem_launch.template import Template

POLL_SECONDS = 0.005
IMPORTS = (
    "ultramem_launch.__main__",
    "ultramem_launch.pretrain",
    "ultramem_megatron.parallel.mcore_import",  # before others import megatron-core the slow way
    "ultramem_megatron.measuring.fingerprint",
    "ultramem_megatron.parallel.mcore_repairs",
    "ultramem_megatron.checkpoint.verify",
    "ultramem_megatron.checkpoint.describe",
    "ultramem_megatron.data.build",
    "ultramem_megatron.data.info",
    "ultramem_megatron.planning.choose",
    "ultramem_megatron.training.evaluate",
    "ultramem_megatron.training.pretrain",
    "torch.utils.tensorboard",
    "rich.console",
    "rich.table",
)


@dataclass(frozen=True, slots=True)
class Ended:
    """How a call ended."""

    status: int
    """Of its exit; the negative number of a signal that killed it."""
    out: str
    err: str
    seconds: float
    hung: bool = False
    """It took too long, and was killed."""


def warm_up() -> None:
    """Import what the verbs need.

    Raises:
        RuntimeError: This process must not be forked; says why.
    """
    hazard = Template(lambda: None, IMPORTS).load()
    if hazard:
        raise RuntimeError(f"verbs cannot be forked from this process: {hazard}")


def call(arguments: list[str], scratch: Path, limit_seconds: float, *, folder: Path, until: str = "") -> Ended:
    """Run a verb.

    Args:
        arguments: Of ``ultramem``.
        scratch: Folder for its output and for its temporary files.
        limit_seconds: It is killed after that.
        folder: Where it is started.
        until: When its output holds this, it is asked to end (SIGTERM): for one that goes on for ever.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    out, err = scratch / "out", scratch / "err"
    out.write_bytes(b"")
    sys.stdout.flush()
    sys.stderr.flush()
    began = time.monotonic()
    pid = os.fork()
    if pid == 0:
        _live(arguments, out, err, folder)
    with contextlib.suppress(OSError):  # both do it, as either may be first
        os.setpgid(pid, pid)
    status, hung = _wait(pid, out, began + limit_seconds, until)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)  # what it may have left behind
    seconds = time.monotonic() - began
    return Ended(status, out.read_text(errors="replace"), err.read_text(errors="replace"), seconds, hung)


def _wait(pid: int, out: Path, deadline: float, until: str) -> tuple[int, bool]:
    """Its exit status, and whether it was killed for taking too long."""
    asked = hung = False
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status), hung
        if until and not asked and until in out.read_text(errors="replace"):
            os.kill(pid, signal.SIGTERM)
            asked = True
        if not hung and time.monotonic() > deadline:
            hung = True
            with contextlib.suppress(ProcessLookupError):  # it may just have ended
                os.killpg(pid, signal.SIGKILL)
        time.sleep(POLL_SECONDS)


def _live(arguments: list[str], out: Path, err: Path, folder: Path) -> NoReturn:
    """The life of a fork; what stands on the stack is its parent's, so it never returns."""
    status = 1
    try:
        with contextlib.suppress(OSError):
            os.setpgid(0, 0)
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, signal.SIG_DFL)
        for target, path in ((0, Path(os.devnull)), (1, out), (2, err)):
            os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC), target)
        # whoever forks may have put objects of its own there
        sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115
        os.chdir(folder)
        os.environ["TMPDIR"] = str(out.parent)
        sys.argv = ["ultramem", *arguments]
        status = _status()
        threading._shutdown()  # type: ignore[attr-defined]  # waits for threads, as the interpreter does
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _status() -> int:
    from ultramem_launch.__main__ import main

    try:
        main()
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0
