"""Python programs as forks of this process, which has imported what they need, in place of new interpreters.

A new Python needs two to five seconds of a core to import torch and megatron-core before it does anything that a test
asks about; a fork has them. ``ForkedProgram`` stands where ``subprocess.Popen`` stood: a real process with a pid,
streams, signals and children of its own, which finds arguments, environment, folder and state as a new one would.

Not for what a test says about the start of a program itself, such as what it imports: modules are the parent's, and
what the test has patched stays patched.
"""

import atexit
import contextlib
import faulthandler
import fcntl
import gc
import inspect
import io
import logging
import multiprocessing.util
import os
import random
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import types
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

FAILED = 1  # exit status of an exception, and of words given to sys.exit
_UNUSED = -1  # in place of a pipe that was not asked for


class ForkedProgram(subprocess.Popen[Any]):
    """``Popen`` that forks for ``[sys.executable, FILE, ...]``, ``-m MODULE`` and ``-c CODE``; all else is started."""

    def _execute_child(self, *arguments: Any) -> None:
        start = super()._execute_child  # type: ignore[misc]
        given = inspect.signature(start).bind(*arguments).arguments
        command = [os.fspath(word) for word in given["args"]] if isinstance(given["args"], list | tuple) else []
        if command[1:2] == ["-u"]:  # whoever gives it looks at the output when the program has ended
            del command[1]
        if command[:1] != [sys.executable] or not (body := _body_of(command[1:])):
            start(*arguments)
            return
        self.pid = _fork(lambda: _live(body, command, given))
        self._child_created = True
        pipes = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
        self._close_pipe_fds(*(given[name] for name in pipes))  # type: ignore[attr-defined]


def run_forked(
    command: Sequence[str | Path],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float | None = 300.0,
) -> "subprocess.CompletedProcess[str]":
    """``subprocess.run`` for a ``ForkedProgram``, with both streams as text; what it starts is started as ever."""
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with ForkedProgram(command, cwd=cwd, env=env, text=True, **pipes) as process:  # type: ignore[call-overload]
        try:
            output, errors = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


def _body_of(words: Sequence[str]) -> Callable[[], object] | None:
    """What the interpreter would do with its command line; None if it is not one for a fork."""
    match words:
        case ["-m", module, *_]:
            return lambda: runpy.run_module(module, run_name="__main__", alter_sys=True)
        case ["-c", code, *_]:
            return lambda: _run_code(code)
        case [file, *_] if not file.startswith("-"):
            return lambda: runpy.run_path(file, run_name="__main__")
    return None


def _run_code(code: str) -> None:
    main = types.ModuleType("__main__")
    sys.modules["__main__"] = main
    exec(compile(code, "<string>", "exec"), main.__dict__)


def _fork(live: Callable[[], NoReturn]) -> int:
    """The process id of the child, which lives and ends in ``live``."""
    sys.stdout.flush()  # else both would write what is held back
    sys.stderr.flush()
    # what reaches the child before it has laid down the handlers of its parent waits until then
    unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        pid = os.fork()
        if pid == 0:
            live()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
    return pid


def _live(body: Callable[[], object], command: Sequence[str], given: Mapping[str, Any]) -> NoReturn:
    """The life of the program. Never returns: what stands on the stack is its parent's."""
    status = FAILED
    try:
        gc.freeze()  # a collection would write to every object of the parent, and so copy all of its memory
        _forget_parent()
        _take_streams(given)
        _take_place(command, given)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        status = _status_of(body)
        threading._shutdown()  # type: ignore[attr-defined]  # waits for threads
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)


def _forget_parent() -> None:
    """Handlers, hooks, random numbers and modes that pytest and the tests have set."""
    faulthandler.disable()
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.excepthook, sys.unraisablehook = sys.__excepthook__, sys.__unraisablehook__
    threading.excepthook = threading.__excepthook__
    _forget_exit_handlers()
    random.seed()
    np.random.seed()
    torch.seed()
    torch.set_deterministic_debug_mode("default")
    tempfile.tempdir = None


def _forget_exit_handlers() -> None:
    """Those of the parent would remove its temporary folders; those of the program are to come."""
    atexit._clear()
    for finalizer in list(weakref.finalize._registry):  # type: ignore[attr-defined]
        finalizer.atexit = False
    weakref.finalize._registered_with_atexit = False  # type: ignore[attr-defined]
    multiprocessing.util._finalizer_registry.clear()  # type: ignore[attr-defined]
    multiprocessing.process._children = set()  # type: ignore[attr-defined]
    atexit.register(multiprocessing.util._exit_function)  # type: ignore[attr-defined]


def _take_streams(given: Mapping[str, Any]) -> None:
    """Standard streams as they were asked for, nothing else open but what is to be passed on, and logs go there."""
    wanted = (given["p2cread"], given["c2pwrite"], given["errwrite"])
    # first above all that is standard: else one could overwrite another before that is in its place
    copies = [_UNUSED if descriptor == _UNUSED else _above_standard(descriptor) for descriptor in wanted]
    for number, copy in enumerate(copies):
        if copy != _UNUSED:
            os.dup2(copy, number)
    _close_all_but({0, 1, 2, *given["pass_fds"]})
    sys.stdin = sys.__stdin__ = _text(0, "rb")  # type: ignore[misc]
    sys.stdout = sys.__stdout__ = _text(1, "wb")  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = _text(2, "wb", "backslashreplace")  # type: ignore[misc]
    root = logging.getLogger()
    root.handlers.clear()
    root.setLevel(logging.WARNING)
    for logger in map(logging.getLogger, list(logging.root.manager.loggerDict)):
        for handler in logger.handlers:
            if type(handler) is logging.StreamHandler:
                handler.setStream(sys.stderr)


def _above_standard(descriptor: int) -> int:
    return fcntl.fcntl(descriptor, fcntl.F_DUPFD, 3)


def _close_all_but(kept: set[int]) -> None:
    for descriptor in [int(path.name) for path in Path("/dev/fd").iterdir()]:
        if descriptor not in kept:
            with contextlib.suppress(OSError):  # that of the listing itself
                os.close(descriptor)


def _text(descriptor: int, mode: str, errors: str = "strict") -> io.TextIOWrapper:
    """As the interpreter opens it: error output by lines, the other by blocks unless it is a terminal."""
    unbuffered = bool(os.environ.get("PYTHONUNBUFFERED"))
    by_lines = descriptor == 2 or unbuffered or os.isatty(descriptor)
    binary = open(descriptor, mode, closefd=False)  # noqa: SIM115  open as long as the program lives
    return io.TextIOWrapper(binary, encoding="utf-8", errors=errors, line_buffering=by_lines)


def _take_place(command: Sequence[str], given: Mapping[str, Any]) -> None:
    """Arguments, environment, folder, path of imports, warnings."""
    if given["start_new_session"]:
        os.setsid()
    if given["cwd"] is not None:
        os.chdir(given["cwd"])
    if given["env"] is not None:
        environment = dict(given["env"])
        os.environ.clear()
        os.environ.update(environment)
    if given["preexec_fn"] is not None:
        given["preexec_fn"]()
    is_script = command[1] not in ("-m", "-c")
    sys.argv = list(command[1:] if is_script else [command[1], *command[3:]])
    asked = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    first = Path(command[1]).resolve().parent if is_script else Path.cwd()
    sys.path[:] = list(dict.fromkeys([str(first), *asked, *sys.path]))
    _set_warnings()


def _set_warnings() -> None:
    """The filters of a new interpreter, and warnings shown on its error output."""
    warnings.resetwarnings()
    if os.environ.get("PYTHONWARNINGS") == "ignore":
        warnings.simplefilter("ignore")
    else:
        for category in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", category)
        warnings.filterwarnings("default", category=DeprecationWarning, module="__main__")

    def show(message: Any, category: Any, filename: str, lineno: int, file: Any = None, line: Any = None) -> None:
        (file or sys.stderr).write(warnings.formatwarning(message, category, filename, lineno, line))

    warnings.showwarning = show


def _status_of(body: Callable[[], object]) -> int:
    """Call it; the exit status that the interpreter would make of how it ends."""
    try:
        body()
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return FAILED
    except BaseException as error:
        sys.excepthook(*sys.exc_info())
        if isinstance(error, KeyboardInterrupt):
            sys.stdout.flush()
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        return FAILED
    return 0
