"""``ultramem monitor``: a real TensorBoard, asked through its HTTP interface, ended by a signal."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import pytest

from ultramem_launch.verbs.monitor import find_tensorboard_logs, serve_tensorboard
from ultramem_megatron.errors import LaunchError
from ultramem_megatron.monitor.sinks import TensorBoardSink

RUN_VERB = "import typer; from ultramem_launch.verbs.monitor import monitor; typer.run(monitor)"


def write_run(folder: Path, num_steps: int, value: float) -> None:
    sink = TensorBoardSink(folder / "tensorboard")
    for step in range(1, num_steps + 1):
        sink.write(step, {"train/loss": value / step, "memory/slot_usage_fraction/layer0": 0.5})
    sink.close()


def fetch(url: str) -> Any:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=30) as answer:
        return json.load(answer)


def fetch_tags(url: str, runs: set[str]) -> dict[str, dict[str, Any]]:
    """Tags by run, once TensorBoard has read the files of all ``runs``."""
    deadline = time.monotonic() + 60
    while True:
        tags: dict[str, dict[str, Any]] = fetch(f"{url}data/plugin/scalars/tags")
        if set(tags) == runs or time.monotonic() > deadline:
            return tags
        time.sleep(0.2)


def fetch_scalars(url: str, run: str, tag: str) -> list[tuple[int, float]]:
    query = urllib.parse.urlencode({"run": run, "tag": tag})
    return [(step, value) for _, step, value in fetch(f"{url}data/plugin/scalars/scalars?{query}")]


def start(*arguments: str) -> "subprocess.Popen[str]":
    # A session of its own: a signal to this process alone must be enough, as from `kill` or a batch system
    return subprocess.Popen(
        [sys.executable, "-c", RUN_VERB, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "ending", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL], ids=lambda number: number.name
)
def test_scalars_are_served_and_a_signal_ends_everything(tmp_path: Path, ending: signal.Signals) -> None:
    write_run(tmp_path / "small", num_steps=4, value=6.0)
    verb = start("--run-dir", str(tmp_path / "small"), "--json")
    try:
        assert verb.stdout is not None
        said = json.loads(verb.stdout.readline())
        assert said["pid"] == verb.pid and said["url"].startswith("http://127.0.0.1:")
        assert set(fetch_tags(said["url"], {"small"})["small"]) == {"train/loss", "memory/slot_usage_fraction/layer0"}
        assert fetch_scalars(said["url"], "small", "train/loss") == [(1, 6.0), (2, 3.0), (3, 2.0), (4, 1.5)]
        children = psutil.Process(verb.pid).children(recursive=True)
        assert any("tensorboard.main" in child.cmdline() for child in children)
    finally:
        verb.send_signal(ending)
        _, errors = verb.communicate(timeout=30)
    assert (verb.returncode, errors) == (-signal.SIGKILL if ending == signal.SIGKILL else 0, "")
    _, alive = psutil.wait_procs(children, timeout=5)
    assert alive == []


@pytest.mark.slow
def test_a_folder_of_runs_compares_them(tmp_path: Path) -> None:
    write_run(tmp_path / "dense", num_steps=2, value=8.0)
    write_run(tmp_path / "ultramem", num_steps=2, value=6.0)
    (tmp_path / "queued").mkdir()
    with serve_tensorboard(find_tensorboard_logs(tmp_path)) as server:
        assert set(fetch_tags(server.url, {"dense", "ultramem"})) == {"dense", "ultramem"}
        assert fetch_scalars(server.url, "dense", "train/loss") == [(1, 8.0), (2, 4.0)]
        assert fetch_scalars(server.url, "ultramem", "train/loss") == [(1, 6.0), (2, 3.0)]
        process = server.process
    assert process.poll() is not None


@pytest.mark.slow
def test_a_tensorboard_that_dies_is_reported(tmp_path: Path) -> None:
    write_run(tmp_path / "small", num_steps=1, value=1.0)
    with (
        pytest.raises(LaunchError, match="TensorBoard ended with exit code -9"),
        serve_tensorboard(find_tensorboard_logs(tmp_path)) as server,
    ):
        server.process.kill()
        server.wait()


def test_a_missing_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match=r"--run-dir .*/nowhere does not exist; name the folder that"):
        find_tensorboard_logs(tmp_path / "nowhere")


def test_a_run_that_has_not_begun_is_named(tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(LaunchError, match=r"holds no tensorboard/ folder, nor does any folder in it"):
        find_tensorboard_logs(tmp_path / "run")


def test_a_port_in_use_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with (
            pytest.raises(LaunchError, match=rf"--port {port} cannot be listened on: Address already in use; leave"),
            serve_tensorboard({"run": tmp_path}, port=port),
        ):
            raise AssertionError("it started")


def test_an_address_of_another_machine_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(LaunchError, match=r"--host 192\.0\.2\.1 --port 0 cannot be listened on"),
        serve_tensorboard({"run": tmp_path}, host="192.0.2.1"),
    ):
        raise AssertionError("it started")


def test_importing_the_verb_is_cheap() -> None:
    code = "import sys, ultramem_launch.verbs.monitor; sys.exit(bool({'torch', 'tensorboard'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
