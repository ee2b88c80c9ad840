"""The files of the cluster. Each setting that is not Slurm's usual one says why it is there."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Size:
    """What ``up`` was asked for."""

    nodes: int
    cpus: int
    """Pretended CPUs of a node: tasks share the real ones."""
    port: int
    dead_after_seconds: int
    requeue_wait_seconds: int

    @property
    def names(self) -> list[str]:
        """n1, n2, ..."""
        return [f"n{index + 1}" for index in range(self.nodes)]


# localhost as everyone's host name: slurmd and slurmctld listen on what theirs resolves to, and on nothing else
SLURM_CONF = """\
ClusterName=devcluster
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={port}
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SrunPortRange={srun_first}-{srun_last}
# a job's ranks meet at a port that follows from its number: jobs of two clusters on this machine have different ones
FirstJobId={first_job}

# one user, root, and a munge of our own
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={root}/munge/munge.sock,cred_expire={requeue_wait_seconds}

# every node has its own folders: they all live on one machine
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool.%n
TmpFS={root}/tmp.%n
SlurmctldPidFile={root}/log/slurmctld.own-pid
SlurmdPidFile={root}/log/slurmd-%n.own-pid
SlurmctldLogFile={root}/log/slurmctld.log
SlurmdLogFile={root}/log/slurmd-%n.log

# no cgroups and no limits of the login shell: this may run in a container
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
PropagateResourceLimits=NONE
# all nodes are this machine: ranks meet on loopback
TaskProlog={root}/etc/task-prolog
MpiDefault=none
SlurmdParameters=config_overrides

# waits cut down, so that trying things out takes seconds
SlurmdTimeout={dead_after_seconds}
KillWait=20
BatchStartTimeout=20
MessageTimeout=20
TCPTimeout=4
UnkillableStepTimeout=60
ReturnToService=2
JobRequeue=1
MinJobAge=3600

SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_min_interval=0
PriorityType=priority/basic
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc={root}/log/jobcomp.txt

{nodes}
PartitionName=main Nodes=n[1-{count}] Default=YES MaxTime=INFINITE State=UP
"""
NODE = (
    "NodeName={name} NodeAddr=127.0.0.1 NodeHostname=localhost Port={port} CPUs={cpus} Boards=1 SocketsPerBoard=1 "
    "CoresPerSocket={cpus} ThreadsPerCore=1 RealMemory=16000 State=UNKNOWN"
)


KINDS = ("tmp", "spool")


def write_configuration(root: Path, size: Size) -> None:
    """Folders, slurm.conf, munge's key; the same again when they exist."""
    folders = ("etc", "run", "log", "state", "munge", *(f"{kind}.{name}" for name in size.names for kind in KINDS))
    for folder in folders:
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder).chmod(0o700 if folder == "state" else 0o1777 if folder.startswith("tmp.") else 0o755)
    key = root / "etc" / "munge.key"
    if not key.exists():
        with os.fdopen(os.open(key, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as stream:
            stream.write(os.urandom(1024))
    nodes = "\n".join(
        NODE.format(name=name, port=size.port + 11 + index, cpus=size.cpus) for index, name in enumerate(size.names)
    )
    text = SLURM_CONF.format(
        **asdict(size) | {"nodes": nodes},
        root=root,
        count=size.nodes,
        first_job=size.port + 100,  # not a port of this or a neighbouring cluster either
        srun_first=size.port + 500,
        srun_last=size.port + 999,
    )
    (root / "etc" / "slurm.conf").write_text(text)
    (root / "etc" / "cgroup.conf").write_text("CgroupAutomount=no\nConstrainCores=no\nConstrainDevices=no\n")
    prolog = root / "etc" / "task-prolog"
    prolog.write_text("#!/bin/sh\necho export MASTER_ADDR=127.0.0.1\n")
    prolog.chmod(0o755)
    (root / "etc" / "size.json").write_text(json.dumps(asdict(size)))


def read_size(root: Path) -> Size | None:
    """What the cluster in ``root`` was set up for."""
    file = root / "etc" / "size.json"
    return Size(**json.loads(file.read_text())) if file.exists() else None
