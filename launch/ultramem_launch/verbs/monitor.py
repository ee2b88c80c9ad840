"""``ultramem monitor``: TensorBoard for a run, on loopback, until Ctrl-C."""

import functools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO

import typer

from ultramem_megatron.child import die_with_parent
from ultramem_megatron.errors import LaunchError
from ultramem_megatron.files import remove_leftovers, temporary_folder

TEMPORARY = "ultramem-monitor"
"""Part of the name of the folder that TensorBoard is given."""
_START_SECONDS = 90.0  # a cold start imports from a network file system
_STOP_SECONDS = 10.0
_ANY_ADDRESS = ("0.0.0.0", "::")


def monitor(
    run_dir: Path = typer.Option(..., "--run-dir", help="Folder of a run, or a folder of several runs to compare."),
    port: int = typer.Option(0, "--port", min=0, max=65535, help="TCP port; 0 takes a free one."),
    host: str = typer.Option("127.0.0.1", "--host", help="Address to listen on. TensorBoard asks for no password."),
    as_json: bool = typer.Option(False, "--json", help="Print url, process id and runs as one line of JSON."),
) -> None:
    """Show a run in TensorBoard: loss, throughput, memory layers, communication. Ctrl-C ends it.

    Listens on this machine only, unless --host says otherwise. From elsewhere, forward the port with
    ssh -L PORT:127.0.0.1:PORT THIS_MACHINE.

    Example: ultramem monitor --run-dir runs/quickstart --port 6006
    """
    runs = find_tensorboard_logs(run_dir)
    with _signals_as_interrupt():
        try:
            with serve_tensorboard(runs, host=host, port=port) as server:
                print(_announcement(run_dir, runs, server, as_json), flush=True)
                server.wait()
        except KeyboardInterrupt:
            if not as_json:
                print("TensorBoard ended.", file=sys.stderr)


def find_tensorboard_logs(run_dir: Path) -> dict[str, Path]:
    """Folders of event files by run name: that of ``run_dir`` or, if it is a folder of runs, those of its runs.

    Raises:
        LaunchError: There is no such folder, or no TensorBoard log in it or one below.
    """
    from ultramem_megatron.monitor.records import TENSORBOARD_FOLDER

    if not run_dir.is_dir():
        raise LaunchError(
            f"--run-dir {run_dir} does not exist; name the folder that `ultramem pretrain` or `ultramem submit` "
            "printed at the start of the run"
        )
    if (run_dir / TENSORBOARD_FOLDER).is_dir():
        return {run_dir.resolve().name: run_dir / TENSORBOARD_FOLDER}
    logs = {logs.parent.name: logs for logs in sorted(run_dir.glob(f"*/{TENSORBOARD_FOLDER}")) if logs.is_dir()}
    if not logs:
        raise LaunchError(
            f"--run-dir {run_dir} holds no {TENSORBOARD_FOLDER}/ folder, nor does any folder in it; the first step "
            "of a run makes it, so name a folder in which a run has begun"
        )
    return logs


@dataclass(frozen=True, slots=True)
class TensorBoardServer:
    """A TensorBoard that answers."""

    url: str
    process: "subprocess.Popen[bytes]"
    output: IO[bytes]

    def wait(self) -> None:
        """Block while it runs.

        Raises:
            LaunchError: It ended by itself.
        """
        self.process.wait()
        raise LaunchError(_why_ended(self.process, self.output))


@contextmanager
def serve_tensorboard(runs: dict[str, Path], *, host: str = "127.0.0.1", port: int = 0) -> Iterator[TensorBoardServer]:
    """TensorBoard as a child process while the context lasts; yields once it answers.

    Args:
        runs: Folders of event files by run name.
        host: Address to listen on.
        port: TCP port; 0 takes a free one.

    Raises:
        LaunchError: The address or port cannot be had, or TensorBoard does not start; with its last words.
    """
    _check_bindable(host, port)
    temporary = Path(tempfile.gettempdir())
    remove_leftovers(temporary, TEMPORARY)
    with temporary_folder(temporary, TEMPORARY) as scratch, tempfile.TemporaryFile() as output:
        command = _tensorboard_command(_link_runs(runs, scratch), host, port)
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            preexec_fn=functools.partial(die_with_parent, os.getpid()),
        )
        try:
            url = _wait_until_it_answers(host, process, output)
            yield TensorBoardServer(url, process, output)
        finally:
            _end(process)


def _link_runs(runs: dict[str, Path], scratch: Path) -> str:
    """A folder for --logdir, with one link for each run.

    TensorBoard names runs by their path below that folder, and a run named "." tells nobody anything. Given the
    folder of all runs it would also walk through their checkpoints, every few seconds.
    """
    for name, folder in runs.items():
        (scratch / name).symlink_to(folder.resolve(), target_is_directory=True)
    return str(scratch)


def _tensorboard_command(logdir: str, host: str, port: int) -> list[str]:
    # load_fast=false: the default needs a second server program, which is not on every platform
    options = [f"--logdir={logdir}", f"--host={host}", f"--port={port}", "--load_fast=false", "--reload_interval=5"]
    return [sys.executable, "-m", "tensorboard.main", *options]


def _check_bindable(host: str, port: int) -> None:
    """Refuse an address that cannot be listened on; found out here because TensorBoard's own words on it are many."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise LaunchError(
                f"--host {host} --port {port} cannot be listened on: {error.strerror or error}; leave out --port "
                "for a free one, and --host for this machine's loopback address"
            ) from None


def _wait_until_it_answers(host: str, process: "subprocess.Popen[bytes]", output: IO[bytes]) -> str:
    """The page's address, once something answers there."""
    deadline = time.monotonic() + _START_SECONDS
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy cannot reach our loopback
    while process.poll() is None and time.monotonic() < deadline:
        url = _announced_url(host, output)
        try:
            if url:
                with direct.open(url + "data/environment", timeout=5):
                    return url
        except (urllib.error.URLError, OSError):
            pass  # it announces itself a moment before it answers
        time.sleep(0.1)
    if process.poll() is None:
        raise LaunchError(f"TensorBoard did not answer on {host} within {_START_SECONDS:.0f} s; try again")
    raise LaunchError(_why_ended(process, output))


def _announced_url(host: str, output: IO[bytes]) -> str | None:
    """Where TensorBoard says that it listens.

    It chooses a free port itself: one chosen here could be taken by another process before TensorBoard binds it.
    """
    # pread: the child writes at the position that it shares with this file
    found = re.search(rb" at http://\S+:(\d+)/", os.pread(output.fileno(), 1 << 20, 0))
    if not found:
        return None
    shown = "127.0.0.1" if host in _ANY_ADDRESS else host
    return f"http://{f'[{shown}]' if ':' in shown else shown}:{int(found[1])}/"


def _why_ended(process: "subprocess.Popen[bytes]", output: IO[bytes]) -> str:
    output.seek(0)
    words = output.read().decode(errors="replace").strip().splitlines()[-5:]
    return (
        f"TensorBoard ended with exit code {process.returncode}; start it by hand to see more: "
        f"{' '.join(map(str, process.args))}. Its last words: {' / '.join(words) or 'none'}"  # type: ignore[arg-type]
    )


def _end(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def _signals_as_interrupt() -> Iterator[None]:
    """SIGTERM and SIGHUP (a closed terminal) end us as Ctrl-C does, so that the child never outlives us."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    # SIGINT as well: it is ignored in background jobs of a shell script, and then could not end us
    handled = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, interrupt) for number in handled}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _announcement(run_dir: Path, runs: dict[str, Path], server: TensorBoardServer, as_json: bool) -> str:
    if as_json:
        return json.dumps({"url": server.url, "pid": os.getpid(), "runs": {name: str(p) for name, p in runs.items()}})
    what = str(run_dir) if len(runs) == 1 else f"{len(runs)} runs in {run_dir}"
    return f"TensorBoard of {what}: {server.url}\nPress Ctrl-C to end it."
