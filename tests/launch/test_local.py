"""``--local N``: what the ranks are told, whose exit status counts, and that nothing outlives the launcher.

The ranks here are small scripts, started in both ways that there are: as commands, and as forks of the launcher.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ultramem_launch.local import run_local_processes
from ultramem_megatron.errors import LaunchError

LAUNCHER = """
import runpy, sys
from ultramem_launch.local import run_local_processes
from ultramem_launch.template import Template
way, processes, *arguments = sys.argv[1:]
print("launcher", flush=False)
body = sys.path[0] + "/work/ultramem_launch/__main__.py"
forked = Template(lambda: runpy.run_path(body, run_name="__main__"), ["json", "imported"])
program = {"forked": forked, "command": [sys.executable, body]}[way]
sys.exit(run_local_processes(int(processes), arguments, program))
"""
RANK_HEAD = """
import json, os, signal, sys, time
from pathlib import Path
rank = int(os.environ["RANK"])
"""
WAIT_SECONDS = 30.0

Launch = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(params=["command", "forked"])
def way(request: pytest.FixtureRequest) -> str:
    """How ranks are started: each as a program, or as forks of the launcher."""
    return str(request.param)


@pytest.fixture
def launch(tmp_path: Path, way: str) -> Iterator[Launch]:
    """``launch(body, processes, *arguments, imported="")``: a launcher whose ranks run ``body`` in ``tmp_path/work``.

    ``imported``: the text of a module that is imported before a fork.
    """
    work, temporary = tmp_path / "work", tmp_path / "temporary"
    (work / "ultramem_launch").mkdir(parents=True)
    temporary.mkdir()
    (work / "ultramem_launch" / "__init__.py").touch()
    (tmp_path / "launcher.py").write_text(LAUNCHER)
    started: list[subprocess.Popen[str]] = []
    unset = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "PYTHONSAFEPATH", "PYTHONUNBUFFERED")
    unset += ("OPENBLAS_NUM_THREADS", "PYTORCH_NVML_BASED_CUDA_CHECK")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    path = os.pathsep.join(path for path in sys.path if path)

    def start(body: str, processes: int, *arguments: str, imported: str = "") -> "subprocess.Popen[str]":
        (work / "ultramem_launch" / "__main__.py").write_text(RANK_HEAD + body)
        (tmp_path / "imported.py").write_text(imported)
        process = subprocess.Popen(
            [sys.executable, str(tmp_path / "launcher.py"), way, str(processes), *arguments],
            cwd=work,
            env={**environment, "TMPDIR": str(temporary), "PYTHONPATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def finish(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    stdout, stderr = process.communicate(timeout=WAIT_SECONDS)
    return process.returncode, stdout, stderr


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def test_what_ranks_are_told(launch: Launch, tmp_path: Path) -> None:
    body = """
names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "ULTRAMEM_RENDEZVOUS")
Path(f"rank-{rank}").write_text(json.dumps([sys.argv[1:], *(os.environ[name] for name in names), sys.stdin.read()]))
"""
    assert finish(launch(body, 3, "pretrain", "tiny", "a.b=1"))[0] == 0
    told = [json.loads((tmp_path / "work" / f"rank-{rank}").read_text()) for rank in range(3)]
    assert [row[:5] for row in told] == [
        [["pretrain", "tiny", "a.b=1"], str(rank), str(rank), "3", "3"] for rank in range(3)
    ]
    assert len({row[5] for row in told}) == 1
    assert told[0][5].startswith(f"file://{tmp_path}/temporary/")
    assert told[0][6:] == [""]
    assert list((tmp_path / "temporary").iterdir()) == []


@pytest.mark.parametrize(
    ("body", "status"),
    [
        pytest.param("sys.exit(0)", 0, id="finished"),
        pytest.param("sys.exit(75)", 75, id="stopped"),
        pytest.param("sys.exit(3) if rank == 1 else time.sleep(60)", 3, id="one-fails-and-the-others-wait"),
        pytest.param("sys.exit(3) if rank == 1 else (time.sleep(0.3), sys.exit(1))", 3, id="the-first-to-fail-counts"),
        pytest.param("sys.exit(3 if rank == 2 else 0)", 3, id="the-others-have-finished"),
        pytest.param("sys.exit(3 if rank == 2 else 75)", 3, id="the-others-have-stopped"),
        pytest.param("os.kill(os.getpid(), 9) if rank == 1 else time.sleep(60)", 137, id="killed"),
        pytest.param("os.kill(os.getpid(), 9)", 137, id="all-killed"),
        pytest.param("os.abort() if rank == 0 else time.sleep(60)", 134, id="aborted"),
    ],
)
def test_exit_status(launch: Launch, body: str, status: int) -> None:
    assert finish(launch(body, 3))[0] == status


def test_a_rank_that_does_not_heed_sigterm_is_killed(launch: Launch, tmp_path: Path) -> None:
    body = """
signal.signal(signal.SIGTERM, lambda *_: None)
Path(f"pid-{rank}").write_text(str(os.getpid()))
while not all(Path(f"pid-{other}").exists() for other in range(2)):
    time.sleep(0.01)
if rank == 1:
    sys.exit(4)
while True:
    time.sleep(0.1)
"""
    assert finish(launch(body, 2))[0] == 4
    assert not is_alive(int((tmp_path / "work" / "pid-0").read_text()))


def test_the_paragraph_of_an_error_is_printed_once(launch: Launch) -> None:
    body = """
Path(os.environ["ULTRAMEM_ERROR_FILE"]).write_text("ConfigError: model.layers = 0\\n")
sys.exit(2)
"""
    status, _, stderr = finish(launch(body, 3))
    assert status == 2
    assert stderr == "ConfigError: model.layers = 0\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_stop_signals_are_handed_on(launch: Launch, tmp_path: Path, number: signal.Signals) -> None:
    body = """
def stop(number, frame):
    Path(f"stopped-{rank}").write_text(str(number))
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGUSR1, stop)
Path(f"ready-{rank}").touch()
while True:
    time.sleep(0.1)
"""
    work = tmp_path / "work"
    launcher = launch(body, 2)
    wait_for(lambda: all((work / f"ready-{rank}").exists() for rank in range(2)))
    launcher.send_signal(number)
    assert finish(launcher)[0] == 75
    assert [(work / f"stopped-{rank}").read_text() for rank in range(2)] == [str(int(number))] * 2


@pytest.mark.skipif(sys.platform != "linux", reason="needs the parent-death signal of Linux")
def test_a_killed_launcher_leaves_no_ranks(launch: Launch, tmp_path: Path) -> None:
    body = """
Path(f".pid-{rank}").write_text(str(os.getpid()))
Path(f".pid-{rank}").rename(f"pid-{rank}")
time.sleep(60)
"""
    files = [tmp_path / "work" / f"pid-{rank}" for rank in range(2)]
    launcher = launch(body, 2)
    wait_for(lambda: all(file.exists() for file in files))
    pids = [int(file.read_text()) for file in files]
    assert all(map(is_alive, pids))
    launcher.kill()
    wait_for(lambda: not any(map(is_alive, pids)))


def test_the_next_launcher_removes_what_a_killed_one_left(launch: Launch, tmp_path: Path) -> None:
    launcher = launch("Path(f'up-{rank}').touch()\ntime.sleep(60)\n", 1)
    wait_for((tmp_path / "work" / "up-0").exists)
    launcher.kill()
    launcher.communicate()
    assert len(list((tmp_path / "temporary").iterdir())) == 1
    (tmp_path / "temporary" / "ultramem-notes").mkdir()
    assert finish(launch("", 1))[0] == 0
    assert [path.name for path in (tmp_path / "temporary").iterdir()] == ["ultramem-notes"]


def test_the_second_interrupt_ends_all_ranks_at_once(launch: Launch, tmp_path: Path) -> None:
    body = """
signal.signal(signal.SIGINT, lambda *_: Path(f"asked-{rank}").touch())
Path(f".up-{rank}").write_text(str(os.getpid()))
Path(f".up-{rank}").rename(f"up-{rank}")
while True:
    time.sleep(0.1)
"""
    work = tmp_path / "work"
    launcher = launch(body, 2)
    wait_for(lambda: all((work / f"up-{rank}").exists() for rank in range(2)))
    pids = [int((work / f"up-{rank}").read_text()) for rank in range(2)]
    launcher.send_signal(signal.SIGINT)
    wait_for(lambda: all((work / f"asked-{rank}").exists() for rank in range(2)))
    assert launcher.poll() is None
    launcher.send_signal(signal.SIGINT)
    assert finish(launcher)[0] == 130
    assert not any(map(is_alive, pids))


@pytest.mark.parametrize("number", [0, -1])
def test_at_least_one_process(number: int) -> None:
    with pytest.raises(LaunchError, match=rf"^--local {number} must be at least 1$"):
        run_local_processes(number, [])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_stop_before_the_ranks_listen_is_no_failure(launch: Launch, tmp_path: Path, number: signal.Signals) -> None:
    process = launch("Path(f'up-{rank}').touch()\ntime.sleep(60)\n", 2, "pretrain")
    wait_for(lambda: all((tmp_path / "work" / f"up-{rank}").exists() for rank in range(2)))
    process.send_signal(number)
    assert finish(process)[0] == 75


forked_only = pytest.mark.parametrize("way", ["forked"], indirect=True)


@forked_only
def test_a_stop_while_the_launcher_imports_starts_no_rank(launch: Launch, tmp_path: Path) -> None:
    imported = """
import time
from pathlib import Path
Path("importing").touch()
while not Path("go on").exists():
    time.sleep(0.01)
"""
    work = tmp_path / "work"
    process = launch("Path('started').touch()", 2, imported=imported)
    wait_for((work / "importing").exists)
    process.send_signal(signal.SIGTERM)
    (work / "go on").touch()
    assert finish(process)[0] == 75
    assert not (work / "started").exists()


@forked_only
@pytest.mark.parametrize(
    "imported",
    [
        pytest.param("import threading, time\nthreading.Thread(target=time.sleep, args=(0.5,)).start()", id="a-thread"),
        pytest.param(
            "from ultramem_launch import template\ntemplate.CUDA_MEMORY = __file__\nfile = open(__file__)", id="cuda"
        ),
        pytest.param(
            "import sys, types\n"
            "sys.modules['torch'] = types.SimpleNamespace(cuda=types.SimpleNamespace(is_initialized=lambda: True))",
            id="torch-says-cuda",
        ),
        pytest.param("raise ValueError", id="a-failure"),
    ],
)
def test_what_cannot_be_forked_is_started_as_a_command(launch: Launch, tmp_path: Path, imported: str) -> None:
    """As ``python -m ultramem_launch``, in whose place a package of that name in the working folder stands."""
    assert finish(launch("Path(f'{rank}').write_text(str('imported' in sys.modules))", 2, imported=imported))[0] == 0
    assert [(tmp_path / "work" / str(rank)).read_text() for rank in range(2)] == ["False"] * 2


@forked_only
def test_a_fork_is_like_a_process_of_its_own(launch: Launch, tmp_path: Path) -> None:
    body = """
import atexit, random, threading
import numpy
assert sys.modules["imported"].during == ["1", "1"]
assert not any(name in os.environ for name in sys.modules["imported"].names)
Path(f"{rank}").write_text(json.dumps([random.random(), numpy.random.rand(), Path("/proc/self/comm").read_text()]))
atexit.register(print, f"rank {rank} is through")
threading.Thread(target=lambda: (time.sleep(0.1), print(f"thread of rank {rank}"))).start()
"""
    imported = """
import os
import numpy
names = ("OPENBLAS_NUM_THREADS", "PYTORCH_NVML_BASED_CUDA_CHECK")
during = [os.environ[name] for name in names]
"""
    status, stdout, stderr = finish(launch(body, 3, imported=imported))
    assert (status, stderr) == (0, "")
    told = [json.loads((tmp_path / "work" / str(rank)).read_text()) for rank in range(3)]
    assert len({row[0] for row in told}) == len({row[1] for row in told}) == 3, "each draws its own numbers"
    assert [row[2] for row in told] == [f"ultramem {rank}\n" for rank in range(3)]
    last_words = [words for rank in range(3) for words in (f"rank {rank} is through", f"thread of rank {rank}")]
    assert sorted(stdout.splitlines()) == sorted(["launcher", *last_words]), "each once"
    assert list((tmp_path / "temporary").iterdir()) == []


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ("raise ValueError('no such thing')", 1, "ValueError: no such thing"),
        ("sys.exit('in words')", 1, "in words"),
        ("sys.exit()", 0, ""),
    ],
)
def test_how_a_rank_may_end(launch: Launch, body: str, status: int, words: str) -> None:
    code, _, stderr = finish(launch(body, 1))
    assert (code, words in stderr, bool(stderr)) == (status, True, bool(words))
    assert "run_local_processes" not in stderr, "the stack of the launcher is not the rank's"


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["calibrate", "pretrain"])
def test_nothing_speaks_against_a_fork_after_the_imports(verb: str) -> None:
    """No thread, whatever the number of cores, no CUDA; and nobody waits for the import of Inductor."""
    script = (
        "import os, sys; from ultramem_launch.template import Template\n"
        f"from ultramem_launch.{verb} import RANK_IMPORTS\n"
        "print([Template(print, RANK_IMPORTS).load(), len(os.listdir('/proc/self/task')), 'torch' in sys.modules])\n"
        "print('OPENBLAS_NUM_THREADS' in os.environ, 'torch._inductor.compile_fx' in sys.modules)"
    )
    threads = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    environment = {name: value for name, value in os.environ.items() if name not in threads}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["['', 1, True]", "False False"]
