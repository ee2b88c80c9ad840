"""``ForkedProgram``: to a program it is as if a new interpreter had been started."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from ultramem_megatron.testing.programs import ForkedProgram, run_forked

LOOK = """
import atexit, json, logging, os, random, signal, sys, tempfile, threading, time, warnings
import numpy, torch
logging.getLogger("torch").warning("a log")
warnings.warn("a warning")
left = tempfile.TemporaryDirectory()
atexit.register(print, "at exit")
threading.Thread(target=lambda: (time.sleep(0.05), print("a thread"))).start()
print(json.dumps({
    "argv": sys.argv, "environment": dict(os.environ), "folder": os.getcwd(), "path": sys.path[0],
    "input": sys.stdin.read(), "files": sorted(os.listdir("/dev/fd"))[:-1],
    "mode": torch.get_deterministic_debug_mode(),
    "draws": [random.random(), numpy.random.rand(), torch.rand(()).item()],
    "handlers": [signal.getsignal(number) is signal.SIG_DFL for number in (signal.SIGTERM, signal.SIGALRM)],
    "main": sys.modules["__main__"].__dict__["left"] is left, "temporary": left.name,
}))
"""


def look(program: Path, folder: Path) -> tuple[dict[str, object], list[str], str]:
    """What a program sees, its last words, and its error output."""
    environment = {"A": "b", "TMPDIR": str(folder)}
    done = run_forked([sys.executable, program, "word", "--option"], cwd=folder, env=environment)
    assert done.returncode == 0, done.stderr
    seen, *words = done.stdout.splitlines()
    return json.loads(seen), words, done.stderr


def test_a_program_finds_what_it_was_given_and_nothing_of_ours(tmp_path: Path) -> None:
    program = tmp_path / "scripts" / "look.py"
    program.parent.mkdir()
    program.write_text(LOOK)
    signal.signal(signal.SIGTERM, lambda *_: None)
    with tempfile.TemporaryDirectory() as ours:
        try:
            (seen, words, errors), (again, *_) = (look(program, tmp_path) for _ in range(2))
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        assert Path(ours).is_dir(), "what the program does at its end is not done to our folders"
    assert seen["argv"] == [str(program), "word", "--option"]
    assert seen["environment"] == {"A": "b", "TMPDIR": str(tmp_path)}
    assert (seen["folder"], seen["path"], seen["input"]) == (str(tmp_path), str(program.parent), "")
    assert seen["files"] == ["0", "1", "2"]
    assert (seen["mode"], seen["handlers"], seen["main"]) == (0, [True, True], True)
    assert all(a != b for a, b in zip(seen["draws"], again["draws"], strict=True))  # type: ignore[call-overload]
    assert words == ["a thread", "at exit"]
    assert str(seen["temporary"]).startswith(str(tmp_path)) and not Path(str(seen["temporary"])).exists()
    assert "a log" in errors and "UserWarning: a warning" in errors


@pytest.mark.parametrize(
    ("code", "status", "words"),
    [
        ("pass", 0, ""),
        ("import sys; sys.exit(75)", 75, ""),
        ("import sys; sys.exit('in words')", 1, "in words"),
        ("raise ValueError('no such thing')", 1, "ValueError: no such thing"),
        ("import os; os.kill(os.getpid(), 9)", -9, ""),
        ("import os; os.kill(os.getpid(), 2)", -2, "KeyboardInterrupt"),
        ("import os; print('not held back', flush=True); os._exit(4)", 4, ""),
    ],
)
def test_how_it_may_end(code: str, status: int, words: str) -> None:
    done = run_forked([sys.executable, "-c", code])
    assert (done.returncode, words in done.stderr, bool(done.stderr)) == (status, True, bool(words))
    assert done.stdout == ("not held back\n" if status == 4 else "")


def test_several_have_pipes_of_their_own() -> None:
    """The end of the first one's input arrives while the second one lives."""
    echo = [sys.executable, "-u", "-c", "import sys; print(sys.stdin.read())"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with ForkedProgram(echo, **pipes) as first, ForkedProgram(echo, **pipes) as second:  # type: ignore[call-overload]
        assert first.communicate("one", timeout=60)[0] == "one\n"
        assert second.poll() is None
        assert second.communicate("two", timeout=60)[0] == "two\n"


def test_it_is_a_process_with_children_and_a_session(tmp_path: Path) -> None:
    code = "import os, subprocess, sys; print(os.getsid(0), subprocess.Popen([*sys.argv[1:]]).wait())"
    command = [sys.executable, "-c", code, "bash", "-c", "exit 5"]
    with ForkedProgram(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.communicate(timeout=60)[0] == f"{process.pid} 5\n"


def test_modules_are_run_and_other_programs_are_started(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_forked([sys.executable, "-m", "json.tool", "--help"]).stdout.startswith("usage: ")
    monkeypatch.setattr(subprocess, "Popen", ForkedProgram)
    assert subprocess.run(["bash", "-c", "echo $0"], capture_output=True, text=True).stdout == "bash\n"
    isolated = [sys.executable, "-I", "-c", "import sys; print('torch' in sys.modules)"]
    assert subprocess.run(isolated, capture_output=True, text=True, env=dict(os.environ)).stdout == "False\n"
