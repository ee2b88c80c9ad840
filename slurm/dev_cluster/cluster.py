"""Up, down, and the death of a node."""

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from dev_cluster.configuration import Size, read_size, write_configuration
from dev_cluster.daemons import Daemons, processes_with, wait_until

__all__ = ["Cluster", "ClusterFault", "Size"]

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "munged")
HOSTS = Path("/etc/hosts")
SYSTEM_CONF = Path("/etc/slurm/slurm.conf")
START_SECONDS = 120.0  # seconds on a quiet machine
JOBS_END_SECONDS = 60.0


class ClusterFault(Exception):
    """What the user can mend, in one paragraph."""


class Cluster:
    """The cluster whose state is in ``root``."""

    def __init__(self, root: Path) -> None:
        self.root, self.conf, self.daemons = root, root / "etc" / "slurm.conf", Daemons(root)
        self.socket = root / "munge" / "munge.sock"
        # sbin is not on every PATH of root
        self.environment = {"SLURM_CONF": str(self.conf), "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"}

    def up(self, size: Size, *, install: bool) -> None:
        """Start what does not run yet, and see that a job step reaches every node."""
        started = time.monotonic()
        before = read_size(self.root)
        if self.daemons.pid("slurmctld") and before != size:
            raise ClusterFault(f"a cluster of another kind runs in {self.root} ({before}); `dev-cluster down` first")
        os.environ.update(self.environment)
        _install_packages(install)
        write_configuration(self.root, size)
        _name_nodes(self._mark, size.names)
        if not SYSTEM_CONF.exists() and not SYSTEM_CONF.is_symlink() and SYSTEM_CONF.parent.is_dir():
            SYSTEM_CONF.symlink_to(self.conf)
        self._start_munge()
        self.daemons.start("slurmctld", ["slurmctld", "-D", "-f", str(self.conf)])
        for name in size.names:
            self._start_slurmd(name)
        if not wait_until(lambda: self._answers(size), START_SECONDS):
            raise ClusterFault(f"the nodes did not come up in {START_SECONDS:.0f} s.\n{self.daemons.last_words()}")
        print(f"Slurm with nodes {', '.join(size.names)} is up after {time.monotonic() - started:.0f} s.")
        if not (SYSTEM_CONF.exists() and SYSTEM_CONF.samefile(self.conf)):
            print(f"{SYSTEM_CONF} is another cluster's, so in each shell: export SLURM_CONF={self.conf}")

    def down(self) -> None:
        """End jobs, then daemons, then the traces outside of ``root``. Nothing happens when nothing runs."""
        os.environ.update(self.environment)
        if self.daemons.pid("slurmctld"):
            _quietly(["scancel", "--full", "--user=root"])
            wait_until(lambda: not _quietly(["squeue", "--noheader"]), JOBS_END_SECONDS)
        # munge last: the others need it to say goodbye
        for name in sorted(self.daemons.names(), key=lambda name: (name == "munged", name == "slurmctld")):
            self.daemons.stop(name)
        _name_nodes(self._mark, [])
        if SYSTEM_CONF.is_symlink() and SYSTEM_CONF.readlink() == self.conf:
            SYSTEM_CONF.unlink()
        print("down")

    def status(self) -> int:
        """Print nodes, daemons and jobs; 0 when it runs."""
        if not self.daemons.pid("slurmctld"):
            print(f"no cluster runs in {self.root}; start one with `slurm/dev-cluster up`")
            return 1
        os.environ.update(self.environment)
        for name in self.daemons.names():
            pid = self.daemons.pid(name)
            print(f"{name:12s} {f'process {pid}' if pid else 'dead'}")
        sys.stdout.flush()
        subprocess.run(["sinfo", "-N", "-o", "%N %t %c CPUs %E"], check=False)
        subprocess.run(["squeue"], check=False)
        return 0

    def stop_node(self, name: str) -> None:
        """Kill the daemon and all that runs on the node. The kernel still closes its connections, which a machine
        without power would not: the others may notice sooner than on a cluster."""
        self._check_node(name)
        # tasks have the environment of the job, which slurmd adds to; its own and its helpers' is marked by us
        tasks = processes_with([b"SLURM_CONF=" + os.fsencode(self.conf), b"SLURMD_NODENAME=" + name.encode()])
        victims = {*processes_with([self._mark_of(name)]), *tasks}
        for number in (signal.SIGSTOP, signal.SIGKILL):  # stopped first, so that none outlives another to tell
            for pid in victims:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
        self.daemons.stop(f"slurmd-{name}")
        print(f"{name} is dead ({len(victims)} processes)")

    def start_node(self, name: str) -> None:
        """Start the daemon of a node again; Slurm takes it back by itself (ReturnToService)."""
        self._check_node(name)
        os.environ.update(self.environment)
        self._start_slurmd(name)
        print(f"{name} starts")

    @property
    def _mark(self) -> str:
        return f"# dev-cluster {self.root}"

    def _mark_of(self, name: str) -> bytes:
        return b"DEV_CLUSTER_NODE=" + os.fsencode(self.root / name)

    def _check_node(self, name: str) -> None:
        size = read_size(self.root)
        if size is None:
            raise ClusterFault(f"there is no cluster in {self.root}; start one with `slurm/dev-cluster up`")
        if name not in size.names:
            raise ClusterFault(f"node {name} is unknown; this cluster has {', '.join(size.names)}")

    def _start_slurmd(self, name: str) -> None:
        mark, _, value = os.fsdecode(self._mark_of(name)).partition("=")
        self.daemons.start(f"slurmd-{name}", ["slurmd", "-D", "-f", str(self.conf), "-N", name], {mark: value})

    def _start_munge(self) -> None:
        if self.daemons.pid("munged") and self._munge_answers():
            return
        self.daemons.stop("munged")
        for left in self.socket.parent.glob("munge.sock*"):
            left.unlink()
        own = {"socket": self.socket, "key-file": self.root / "etc" / "munge.key", "num-threads": 2}
        files = {f"{kind}-file": self.root / "log" / f"munged.{kind}" for kind in ("pid", "log", "seed")}
        options = [f"--{name}={value}" for name, value in (own | files).items()]
        self.daemons.start("munged", ["munged", "--foreground", "--force", *options])
        if not wait_until(self._munge_answers, START_SECONDS):
            raise ClusterFault(f"munged did not answer.\n{self.daemons.last_words()}")

    def _munge_answers(self) -> bool:
        return bool(_quietly(["munge", "--no-input", f"--socket={self.socket}"]))

    def _answers(self, size: Size) -> bool:
        states = _quietly(["sinfo", "--noheader", "-N", "-o", "%t"]).split()
        if len([state for state in states if state in ("idle", "mix", "alloc")]) < size.nodes:
            return False
        # "idle" only says that a node registered; a step says that the way back works, too
        step = ["srun", f"--nodes={size.nodes}", "--ntasks-per-node=1", "--time=1", "--overcommit", "true"]
        return subprocess.run(["timeout", "60", *step], capture_output=True).returncode == 0


def _install_packages(allowed: bool) -> None:
    missing = [program for program in PROGRAMS if not shutil.which(program)]
    if not missing:
        return
    if not allowed or not shutil.which("apt-get"):
        raise ClusterFault(
            f"{', '.join(missing)} not found. On Debian and Ubuntu: apt-get install {' '.join(PACKAGES)}; elsewhere "
            "install your distribution's Slurm and munge"
        )
    with _no_services_started():
        for command in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", *PACKAGES]):
            quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
            done = subprocess.run(["apt-get", *command], capture_output=True, text=True, env=quiet)
            if done.returncode:
                raise ClusterFault(
                    f"apt-get {command[0]} failed, so {', '.join(missing)} cannot be had: {done.stderr.strip()[-500:]}"
                )


@contextlib.contextmanager
def _no_services_started() -> Iterator[None]:
    """Debian's maintainer scripts would start daemons of their own, with a configuration that does not exist."""
    policy = Path("/usr/sbin/policy-rc.d")
    if policy.exists():
        yield
        return
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    try:
        yield
    finally:
        policy.unlink()


def _name_nodes(mark: str, names: list[str]) -> None:
    """Lines of /etc/hosts, replaced in place: the file may be mounted there."""
    with HOSTS.open("r+") as hosts:
        fcntl.flock(hosts, fcntl.LOCK_EX)  # two clusters may come up at once
        others = [line for line in hosts.read().splitlines() if not line.endswith(mark)]
        hosts.seek(0)
        hosts.write("".join(f"{line}\n" for line in [*others, *(f"127.0.0.1 {name} {mark}" for name in names)]))
        hosts.truncate()


def _quietly(command: list[str]) -> str:
    """What a client of Slurm prints, "" when it fails."""
    done = subprocess.run(["timeout", "20", *command], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    return done.stdout if done.returncode == 0 else ""
