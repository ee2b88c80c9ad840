"""Daemons without systemd: started in sessions of their own, remembered by process id and start time."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

STOP_SECONDS = 20.0


class Daemons:
    """The daemons of one cluster; ``root/run/<name>.pid`` says which run."""

    def __init__(self, root: Path) -> None:
        self.run, self.log = root / "run", root / "log"

    def names(self) -> list[str]:
        """Those that were started and not stopped, alive or not."""
        return sorted(file.stem for file in self.run.glob("*.pid"))

    def pid(self, name: str) -> int | None:
        """Of a live daemon. A process id alone is reused in time; with the start time it is not."""
        with contextlib.suppress(FileNotFoundError, ValueError):
            pid, started = (self.run / f"{name}.pid").read_text().split()
            if start_time(int(pid)) == started:
                return int(pid)
        return None

    def start(self, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        """Nothing happens when it runs already."""
        if self.pid(name) is not None:
            return
        with (self.log / f"{name}.out").open("ab") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, **(environment or {})},
            )
        (self.run / f"{name}.pid").write_text(f"{process.pid} {start_time(process.pid)}")

    def stop(self, name: str) -> None:
        """Ask, wait, then kill. Nothing happens when it does not run."""
        pid = self.pid(name)
        if pid is not None:
            os.kill(pid, signal.SIGTERM)
            if not wait_until(lambda: self.pid(name) is None, STOP_SECONDS):
                os.kill(pid, signal.SIGKILL)
        (self.run / f"{name}.pid").unlink(missing_ok=True)

    def last_words(self) -> str:
        """The ends of all logs, for a start that failed."""
        logs = sorted([*self.log.glob("*.log"), *self.log.glob("*.out")])
        return "\n".join(f"{log.name}: {line}" for log in logs for line in log.read_text().splitlines()[-4:])


def start_time(pid: int) -> str | None:
    """Clock ticks after boot, None when there is no such process (or only what is left of one)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] == "Z" else fields[19]


def wait_until(condition: "object", seconds: float) -> bool:
    """Whether it came true in time."""
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def processes_with(assignments: Sequence[bytes]) -> list[int]:
    """Processes whose environment holds all of these ``NAME=value``."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if set(assignments) <= set((folder / "environ").read_bytes().split(b"\0")):
                found.append(int(folder.name))
    return found
