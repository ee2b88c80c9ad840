"""The batch script itself, with commands in place of Slurm's that do what the test asks: signals, in every phase."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from ultramem_launch.ending import Outcome, read_ending
from ultramem_launch.slurm.folder import JobFolder
from ultramem_launch.slurm.needs import Needs, save_needs
from ultramem_launch.slurm.nodes import Speeds, save_speeds
from ultramem_launch.slurm.request import JobRequest
from ultramem_launch.slurm.script import Place, render_script
from ultramem_launch.slurm.site import Site
from ultramem_megatron.files import write_text
from ultramem_megatron.testing.tiny import write_tiny_config

ROOT = Path(__file__).parents[2]
WAIT_SECONDS = 100.0
SRUN = """#!/bin/bash
# What a step does: stand still in the phase that is named, else what the real one would do, in one task.
for word; do case $word in
  ultramem_launch.slurm.node_check) phase=nodes ;;
  ultramem_launch.slurm.all_reduce_check) phase=all-reduce ;;
  pretrain) phase=run ;;
esac; done
echo "$phase" >>"$FAKE/phases"
if [ "$phase" = "$STANDS_IN" ]; then echo $$ >"$FAKE/step"; exec sleep 1000; fi
while [[ $1 != *python* ]]; do shift; done
if [ "$phase" = nodes ]; then SLURMD_NODENAME=n1 exec "$@"; fi
"""
SCANCEL = """#!/bin/bash
# The ranks of a run save and end; a check is left standing, as one that has lost its node would be.
echo "scancel $*" >>"$FAKE/calls"
[ "$STANDS_IN" = run ] || exit 0
echo '{"outcome": "preempted", "reason": "saved", "attempt": "7.0", "exit_status": 75}' >"$FAKE/../run/status.json"
kill "$(<"$FAKE/step")"
"""
SCONTROL = """#!/bin/bash
echo "scontrol $*" >>"$FAKE/calls"
[ "$2" != hostnames ] || echo n1
"""


@dataclass
class Script:
    """A job's script, and the folder of its commands."""

    folder: JobFolder
    fake: Path

    def start(self, stands_in: str = "") -> "subprocess.Popen[bytes]":
        environment = {
            **os.environ,
            "PATH": f"{self.fake}:{os.environ['PATH']}",
            "FAKE": str(self.fake),
            "STANDS_IN": stands_in,
            "SLURM_JOB_ID": "7",
            "SLURM_JOB_NUM_NODES": "1",
            "SLURM_JOB_NODELIST": "n1",
        }
        return subprocess.Popen(["bash", str(self.folder.script)], env=environment, start_new_session=True)

    def phases(self) -> list[str]:
        file = self.fake / "phases"
        return file.read_text().split() if file.exists() else []

    def calls(self) -> str:
        file = self.fake / "calls"
        return file.read_text() if file.exists() else ""

    def signal_in(self, phase: str, number: signal.Signals) -> int:
        """Its exit status."""
        script = self.start(phase)
        try:
            deadline = time.monotonic() + WAIT_SECONDS
            while phase not in self.phases():
                assert script.poll() is None and time.monotonic() < deadline
                time.sleep(0.05)
            script.send_signal(number)
            return script.wait(WAIT_SECONDS)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(script.pid, signal.SIGKILL)  # what stands still
            script.wait()


@pytest.fixture
def script(tmp_path: Path) -> Script:
    fake = tmp_path / "bin"
    for name, text in {"srun": SRUN, "scontrol": SCONTROL, "scancel": SCANCEL, "sinfo": "#!/bin/bash\n"}.items():
        write_text(fake / name, text)
        (fake / name).chmod(0o755)
    (fake / "squeue").symlink_to("sinfo")
    folder = JobFolder(tmp_path / "run")
    folder.job.mkdir(parents=True)
    folder.logs.mkdir()
    write_tiny_config(tmp_path).rename(folder.config)
    asked = JobRequest(name="tiny", nodes="1", gpus_per_node=0, tasks_per_node=2)
    save_needs(folder.job, Needs(gpus_per_node=0, free_bytes=0, all_reduce_bytes_per_second=0.0))
    place = Place(
        run_dirs=[folder.run_dir],
        home=folder.run_dir,
        work_dir=tmp_path,
        python=sys.executable,
        python_path=[ROOT, ROOT / "kernels", ROOT / "launch"],
    )
    write_text(folder.script, render_script(asked, Site(), place))
    return Script(folder, fake)


@pytest.mark.parametrize("phase", ["nodes", "all-reduce"])
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGUSR1, 0), (signal.SIGTERM, 75)], ids=["the-limit-is-near", "cancelled"]
)
def test_a_signal_ends_the_checks(script: Script, phase: str, number: signal.Signals, status: int) -> None:
    assert script.signal_in(phase, number) == status
    ending = read_ending(script.folder.run_dir)
    assert ending is not None
    assert (ending.outcome, ending.reason) == (Outcome.PREEMPTED, f"{number.name} ended it before it could save")
    assert script.phases() == ["nodes", "all-reduce"][: 1 + (phase == "all-reduce")], "nothing was started after it"
    assert not script.folder.exclude.exists(), "no node is blamed"
    assert ("scontrol requeue 7" in script.calls()) is (number == signal.SIGUSR1)
    assert ("scancel --signal=USR1 7" in script.calls()) is (number == signal.SIGUSR1)


def test_before_the_limit_the_run_saves_and_the_job_starts_again(script: Script) -> None:
    save_speeds(
        script.folder.preflight("7.0"),
        Speeds(node_bytes_per_second={"n1": 1e9}, all_bytes_per_second=1e9, expected_bytes_per_second=0.0),
    )
    assert script.signal_in("run", signal.SIGUSR1) == 0
    ending = read_ending(script.folder.run_dir)
    assert ending is not None
    assert (ending.outcome, ending.reason) == (Outcome.PREEMPTED, "saved")
    assert script.calls().split("\n")[-3:] == ["scancel --signal=USR1 7", "scontrol requeue 7", ""]


def test_a_check_that_leaves_no_findings_has_not_passed(script: Script) -> None:
    assert script.start().wait(WAIT_SECONDS) == 0
    ending = read_ending(script.folder.run_dir)
    assert ending is not None
    assert ending.outcome is Outcome.NOT_MET, "the all-reduce left no numbers"
    assert "all-reduce before training did not end" in ending.reason
    assert script.phases() == ["nodes", "all-reduce"]
    assert "scontrol requeue 7" in script.calls()
