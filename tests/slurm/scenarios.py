"""Jobs on a real Slurm, and what happens to each. They mostly wait, so they run beside the other tests, two at a time.

    python tests/slurm/scenarios.py FOLDER [NAME ...]

FOLDER gets a folder for each scenario with its run and, when it is over, `ended.json`: what was seen, or why it did not
come to its end. The file `no-cluster` says why there are none.
"""

import json
import re
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

from ultramem_launch.run_holder import this_process
from ultramem_launch.run_lock import RunHeldError, take
from ultramem_launch.slurm_place import job_port
from ultramem_megatron.checkpoint.store import checkpoint_folders
from ultramem_megatron.testing.slurm_faults import flip_byte
from ultramem_megatron.testing.slurm_jobs import (
    NOT_A_CLUSTER,
    Slurm,
    attempts_of,
    first_free_port,
    newest_step,
    status_of,
    wait_until,
)
from ultramem_megatron.testing.tiny import write_tiny_config

STEPS = 40
SETTINGS = (f"training.steps={STEPS}", "training.global_batch_size=8", "checkpoint.interval=10")
AT_A_TIME = 2
NODES = 2 * AT_A_TIME
ENDED, NO_CLUSTER = "ended.json", "no-cluster"
HOSTILE = 'it\'s "a" run $(touch injected) `touch injected` %j ;&|<>'
"""Name of a run folder in which a shell would find something to do."""

Facts = dict[str, Any]


class Place:
    """Where a scenario runs."""

    def __init__(self, slurm: Slurm, root: Path, name: str) -> None:
        self.slurm, self.folder, self.config = slurm, root / name, root / "tiny.yaml"
        self.run_dir = self.folder / "run"
        self.folder.mkdir()

    def submit(self, *options: str, settings: tuple[str, ...] = (), ranks_per_node: int = 1, **variables: str) -> str:
        """The tiny run as a job. Returns its id."""
        words = ("--tasks-per-node", str(ranks_per_node), *options)
        return self.slurm.submit(self.config, (*SETTINGS, *settings), self.run_dir, *words, **variables)

    def wait(self, condition: Callable[[], object]) -> None:
        """Until it is true."""
        wait_until(condition, self.run_dir)


# --- What happens to each job; the test of the same name looks at what it left ----------------------------------------


def two_nodes_give_the_same_run_as_one_machine(place: Place) -> Facts:
    place.run_dir = place.folder / HOSTILE
    job = place.submit("--nodes", "2", ranks_per_node=2)
    listening: set[str] = set()

    def has_ended() -> bool:
        for step in range(3):  # two of checks, then the run
            listening.update(listening_on(job_port(int(job), step=step)))
        return bool(status_of(place.run_dir))

    place.wait(has_ended)
    ended = place.slurm.wait_for(job, place.run_dir)
    status = place.slurm.ultramem("status", "--run-dir", str(place.run_dir), "--json", cwd=place.folder)
    logs = place.slurm.ultramem("logs", "--run-dir", str(place.run_dir), "--follow", cwd=place.folder)
    nodes = place.slurm.call("scontrol", "show", "hostnames", ended["NodeList"]).split()
    shown = {"status": json.loads(status.stdout), "logs": logs.stdout, "nodes": nodes}
    return {"job": job, "ended": ended, "listening": sorted(listening), **shown}


def a_run_longer_than_the_time_limit_goes_on_until_it_is_done(place: Place) -> Facts:
    """Its first start gets to a checkpoint within the limit, but not to the end.

    Where a busy machine does not get so far in a minute the limit is doubled, as a user would do it.
    """
    minutes = 1  # Slurm counts in whole ones
    while True:
        place.run_dir = place.folder / f"{minutes} minutes"
        options = ("--nodes", "2", "--time", str(minutes), "--stop-before", "10", "--preflight", "none")
        pace = {"FAULT_PACE_SECONDS": str(72 * minutes / STEPS)}
        job = place.submit(*options, "--max-restarts", "9", **pace)
        place.wait(lambda: attempts_of(place.run_dir)[:1] and attempts_of(place.run_dir)[0]["outcome"])
        if attempts_of(place.run_dir)[0]["last_step"]:
            return {"job": job, "ended": place.slurm.wait_for(job, place.run_dir)}
        place.slurm.call("scancel", job)
        minutes *= 2


def a_lost_node_is_done_without(place: Place) -> Facts:
    job = place.submit("--nodes", "1-2", "--preflight", "nodes", FAULT_PACE_SECONDS="0.3")
    place.wait(lambda: newest_step(place.run_dir) > 12)
    nodes = place.slurm.call("squeue", "--noheader", f"--jobs={job}", "--format=%N").strip()
    lost = place.slurm.call("scontrol", "show", "hostnames", nodes).split()[-1]
    try:
        stopped = place.slurm.dev_cluster("stop-node", lost)
        if stopped.returncode:
            raise RuntimeError(stopped.stderr)
        ended = place.slurm.wait_for(job, place.run_dir)
    finally:
        place.slurm.dev_cluster("start-node", lost)
    return {"job": job, "ended": ended, "lost": lost}


def a_killed_rank_a_damaged_checkpoint_and_a_stopped_rank_lose_nothing(place: Place) -> Facts:
    limits = ("resilience.hang_seconds=16", "resilience.pause_seconds=100")
    options = ("--nodes", "2", "--preflight", "none")
    job = place.submit(*options, settings=limits, ranks_per_node=2, FAULT_PACE_SECONDS="0.1")
    place.wait(lambda: newest_step(place.run_dir) > 26)
    held = ""
    try:
        take(place.run_dir, this_process({}))
    except RunHeldError as error:
        held = str(error)
    place.slurm.rank_process(job, 3).send_signal(signal.SIGKILL)
    place.wait(lambda: attempts_of(place.run_dir)[0]["outcome"])
    newest = checkpoint_folders(place.run_dir / "checkpoints")[0]
    flip_byte(max(newest.glob("*.distcp"), key=lambda file: file.stat().st_size))
    log = place.run_dir / "logs" / f"{job}.1.log"
    place.wait(lambda: log.is_file() and re.search(r"^0: step +11/", log.read_text(), re.M))
    place.slurm.rank_process(job, 2).send_signal(signal.SIGSTOP)
    facts = {"damaged": str(newest), "held": held}
    return {"job": job, "ended": place.slurm.wait_for(job, place.run_dir), **facts}


def a_run_that_always_crashes_is_given_up(place: Place) -> Facts:
    options = ("--nodes", "1", "--max-restarts", "1", "--preflight", "none")
    job = place.submit(*options, FAULT_CRASH_AT_STEP="3")
    return {"job": job, "ended": place.slurm.wait_for(job, place.run_dir)}


SCENARIOS: dict[str, Callable[[Place], Facts]] = {
    scenario.__name__: scenario
    for scenario in (  # the longest first
        a_killed_rank_a_damaged_checkpoint_and_a_stopped_rank_lose_nothing,
        a_run_longer_than_the_time_limit_goes_on_until_it_is_done,
        a_lost_node_is_done_without,
        two_nodes_give_the_same_run_as_one_machine,
        a_run_that_always_crashes_is_given_up,
    )
}

# --- All of them ------------------------------------------------------------------------------------------------------


def listening_on(port: int) -> set[str]:
    """Addresses on which a process of this machine listens at a port."""
    rows = [row.split() for name in ("tcp", "tcp6") for row in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    addresses = [row[1].split(":") for row in rows if row[3] == "0A"]
    return {address for address, number in addresses if int(number, 16) == port}


def play(slurm: Slurm, root: Path, name: str) -> None:
    """One scenario, whose end stands in its folder whatever it is."""
    place = Place(slurm, root, name)
    try:
        said = {"run_dir": "", "problem": "", **SCENARIOS[name](place)}
    except Exception:
        said = {"problem": traceback.format_exc()}
    unfinished = place.folder / f".{ENDED}"
    unfinished.write_text(json.dumps({**said, "run_dir": str(place.run_dir)}))
    unfinished.rename(place.folder / ENDED)


def play_all(slurm: Slurm, root: Path, names: Sequence[str]) -> None:
    """Some at a time, in threads that do not keep a program which is asked to end."""
    waiting: SimpleQueue[str] = SimpleQueue()
    for name in names:
        waiting.put(name)

    def work() -> None:
        try:
            while True:
                play(slurm, root, waiting.get_nowait())
        except Empty:
            return

    threads = [Thread(target=work, daemon=True) for _ in range(AT_A_TIME)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@contextmanager
def cluster(root: Path) -> Iterator[Slurm | None]:
    """A Slurm of its own, taken down at the end; None, with the reason in a file, where none can be had."""
    (root / "site.yaml").write_text('sbatch: {exclusive: ""}\n')  # a node that is stopped ends no other job
    # state apart: the paths of munge's socket must be short
    with tempfile.TemporaryDirectory(prefix="ultramem-slurm-") as state:
        slurm = Slurm(Path(state), site=root / "site.yaml")
        size = ("--nodes", str(NODES), "--port", str(first_free_port(18000, 28000, NODES)))
        try:
            up = slurm.dev_cluster("up", "--no-install", *size, "--dead-after", "20", "--requeue-wait", "10")
            if up.returncode:
                no_cluster = up.returncode == NOT_A_CLUSTER
                (root / NO_CLUSTER).write_text(up.stderr.strip() if no_cluster else f"broken: {up.stderr}")
            yield None if up.returncode else slurm
        finally:
            slurm.dev_cluster("down")


def main() -> int:
    root, names = Path(sys.argv[1]), sys.argv[2:] or list(SCENARIOS)
    root.mkdir(parents=True, exist_ok=True)
    # asked to end, it still takes its cluster down
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    write_tiny_config(root)
    with cluster(root) as slurm:
        if slurm is not None:
            play_all(slurm, root, [name for name in SCENARIOS if name in names])
    return 0


if __name__ == "__main__":
    sys.exit(main())
