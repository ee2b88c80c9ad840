"""Ranks as forks of a process that has imported what they need.

A rank needs some three seconds of a core to import torch and megatron-core; N of them on fewer cores wait for each
other. Imported once and forked, they start in milliseconds and share the memory of the code.

What a fork cannot take along is a thread or a CUDA context. Neither is there after the imports: torch and megatron-core
compute nothing when they are imported, and CUDA is begun by the rank. That is looked at, not believed: if another
package on a machine does otherwise, ranks are started one by one, as processes of their own.
"""

import atexit
import gc
import importlib
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from subprocess import TimeoutExpired
from typing import NoReturn

from ultramem_launch import exit_codes
from ultramem_megatron.child import die_with_parent, name_process

POLL_SECONDS = 0.005
CUDA_MEMORY = "/dev/nvidia-uvm"

WHILE_IMPORTING = {
    # numpy's OpenBLAS starts its threads when it is loaded. Ranks compute with torch, which starts its own later
    "OPENBLAS_NUM_THREADS": "1",
    # dist_checkpointing/strategies/torch.py of megatron-core asks for CUDA, and torch would begin it to find out
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
}
"""Environment variables."""

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
"""Those that a launcher takes and hands on."""


@dataclass(frozen=True, slots=True)
class Template:
    """A program whose ranks are forked."""

    main: Callable[[], object]
    """Called in each rank, with ``sys.argv`` and the environment set; may end by ``sys.exit``."""
    imports: Sequence[str]
    """Modules that all ranks need."""

    def load(self) -> str:
        """Import them into this process. Returns why it must not be forked; empty if it may."""
        with _variables(WHILE_IMPORTING), warnings.catch_warnings():
            # they say what they lack; `ultramem doctor` says it once, and what is used instead
            warnings.simplefilter("ignore")
            try:
                for name in self.imports:
                    importlib.import_module(name)
            except Exception as error:  # a rank meets it too, after it has looked for what it can name
                return f"an import failed: {error!r}"
        return fork_hazard()

    def fork(self, arguments: Sequence[str], environment: Mapping[str, str]) -> "ForkedProcess":
        """Start one rank, without standard input; it is killed when this process ends.

        Args:
            arguments: Its command line, without the program.
            environment: Variables on top of those of this process; ``RANK`` among them.
        """
        sys.stdout.flush()  # else both would print what is held back
        sys.stderr.flush()
        gc.freeze()  # the collector of a rank leaves these objects, and so their shared memory, alone
        parent = os.getpid()
        # what reaches the rank before it has laid down its parent's handlers waits until then
        unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            pid = os.fork()
            if pid == 0:
                self._live(parent, unblocked, arguments, environment)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
        return ForkedProcess(pid)

    def _live(
        self, parent: int, unblocked: set[int], arguments: Sequence[str], environment: Mapping[str, str]
    ) -> NoReturn:
        """The life of a rank; never returns, as what stands on the stack is its parent's."""
        status = exit_codes.FAILED
        try:
            status = _status_of(partial(self._run, parent, unblocked, arguments, environment))
            _leave()
        finally:
            os._exit(status)

    def _run(self, parent: int, unblocked: set[int], arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        """Make of a copy of the parent what a process of its own would be, and go to work."""
        die_with_parent(parent)
        for number in STOP_SIGNALS:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
        os.environ.update(environment)
        sys.argv = [sys.argv[0], *arguments]
        name_process(f"ultramem {environment['RANK']}")
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        if "numpy" in sys.modules:
            sys.modules["numpy"].random.seed()  # Python's own generator does so by itself
        self.main()


def _status_of(main: Callable[[], object]) -> int:
    """Call it; the exit status that the interpreter would make of how it ends."""
    try:
        main()
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return exit_codes.FAILED
    except KeyboardInterrupt:
        sys.excepthook(*sys.exc_info())
        return 128 + signal.SIGINT
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return exit_codes.FAILED
    return exit_codes.FINISHED


def _leave() -> None:
    """What the interpreter does before it ends."""
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()


def fork_hazard() -> str:
    """What a fork of this process would lose; empty if nothing."""
    if sys.platform != "linux":
        return "whether it has threads can be told on Linux alone"
    threads = len(list(Path("/proc/self/task").iterdir()))
    if threads > 1:
        return f"it has {threads} threads"
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return "CUDA is initialised"
    # the driver opens it for whoever begins to use CUDA, and not for NVML, which may be asked before a fork
    return f"it has opened {CUDA_MEMORY}" if CUDA_MEMORY in _open_files() else ""


def _open_files() -> Iterator[str]:
    for link in Path("/proc/self/fd").iterdir():
        try:
            yield str(link.readlink())
        except OSError:  # that of the folder itself
            continue


@contextmanager
def _variables(during: Mapping[str, str]) -> Iterator[None]:
    """Environment variables for a while."""
    before = {name: os.environ[name] for name in during if name in os.environ}
    os.environ.update(during)
    try:
        yield
    finally:
        for name in during:
            del os.environ[name]
        os.environ.update(before)


class ForkedProcess:
    """A child of this process, with what is used of ``subprocess.Popen``."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        """Exit status, or the negative number of the signal that ended it; None as long as it is not known."""

    def poll(self) -> int | None:
        """Look whether it has ended."""
        if self.returncode is None:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:  # a signal handler has asked in the midst of this, and has set the status
                return self.returncode
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end.

        Raises:
            TimeoutExpired: It has not come in ``timeout`` seconds.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutExpired(f"process {self.pid}", timeout or 0.0)
            time.sleep(POLL_SECONDS)
        return code

    def send_signal(self, number: int) -> None:
        """Unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it."""
        self.send_signal(signal.SIGKILL)
