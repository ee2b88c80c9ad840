"""What the loader does with one case, and what of that is a fault."""

import contextlib
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from config_fuzz.cases import Case, Reader
from ultramem_launch.configs import load_config
from ultramem_launch.slurm.array import read_sweep
from ultramem_launch.slurm.site import load_site
from ultramem_launch.verbs.info import describe
from ultramem_megatron.config.load import load_run_config, to_yaml
from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.errors import MOST_CHARACTERS, UltraMemError, one_paragraph
from ultramem_megatron.planning.choose import choose_plan
from ultramem_megatron.planning.cluster import local_cluster
from ultramem_megatron.planning.profile_file import load_profile

MOST_SECONDS = 20.0
BAD_INPUT = 2


class Result(StrEnum):
    """How far a case came."""

    REFUSED = "refused"
    """By the loader."""
    NOT_PLANNED = "accepted, refused by the planner"
    PLANNED = "accepted and planned"


class Fault(StrEnum):
    """What may not happen."""

    TRACEBACK = "traceback"
    SLOW = "over 20 s"
    CONTROL_CHARACTERS = "control characters"
    LONG = "over 1,000 characters"
    NOT_THE_SAME = "saved and read, another config"
    CRASH = "accepted, then crashes or never steps"
    NOT_AS_THE_COMMAND = "the command says otherwise"


@dataclass(slots=True)
class Verdict:
    """What became of a case."""

    number: int
    result: Result
    words: str = ""
    """What is printed, without the type of the error; of a fault, its end."""
    faults: list[Fault] = field(default_factory=list)
    seconds: float = 0.0


def judge(case: Case, folder: Path) -> Verdict:
    """Read the case in ``folder``, made the working folder, and plan what is accepted for one and two ranks."""
    lay_out(case, folder)
    start = time.monotonic()
    try:
        with working_in(folder):
            verdict = _judge(case, folder)
    except UltraMemError as error:
        verdict = Verdict(case.number, Result.REFUSED, f"{type(error).__name__}: {error}")
    except Exception:
        end = traceback.format_exc(limit=-4)
        verdict = Verdict(case.number, Result.REFUSED, end[-1500:], [Fault.TRACEBACK])
    verdict.seconds = time.monotonic() - start
    if Fault.TRACEBACK not in verdict.faults:
        verdict.words = one_paragraph(verdict.words)
        verdict.faults += _faults_of(verdict.words)
    if verdict.seconds > MOST_SECONDS:
        verdict.faults.append(Fault.SLOW)
    return verdict


def lay_out(case: Case, folder: Path) -> None:
    """Write the files of the case."""
    for name, content in case.files.items():
        if name.endswith("/"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        else:
            (folder / name).write_bytes(content)


def read(case: Case) -> RunConfig | None:
    """As the command line would; None for what is no config."""
    match case.reader:
        case Reader.CONFIG:
            return load_config(case.config, case.overrides)
        case Reader.PROFILE:
            load_profile(Path(case.config))
        case Reader.SITE:
            load_site(Path(case.config))
        case Reader.SWEEP:
            read_sweep(Path(case.config))
    return None


def _judge(case: Case, folder: Path) -> Verdict:
    config = read(case)
    if config is None:
        return Verdict(case.number, Result.PLANNED)
    describe(config)
    saved = folder / "saved.yaml"
    saved.write_text(to_yaml(config), encoding="utf-8")
    faults = [] if load_run_config(saved) == config else [Fault.NOT_THE_SAME]
    refusals = []
    for ranks in (1, 2):
        try:
            config.check_world_size(ranks)
            choose_plan(config, local_cluster(ranks))
        except UltraMemError as error:
            refusals.append(f"{type(error).__name__}: {error}")
    result = Result.NOT_PLANNED if len(refusals) == 2 else Result.PLANNED
    return Verdict(case.number, result, refusals[0] if result is Result.NOT_PLANNED else "", faults)


def _faults_of(words: str) -> list[Fault]:
    faults = []
    if not words.isprintable():
        faults.append(Fault.CONTROL_CHARACTERS)
    if len(words) > MOST_CHARACTERS:
        faults.append(Fault.LONG)
    return faults


@contextlib.contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """Relative paths begin there meanwhile."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def can_be_typed(case: Case) -> bool:
    """Whether the case can go through the real command: no NUL, no argument over 128 KiB (Linux)."""
    words = (case.config, *case.overrides)
    return case.reader is Reader.CONFIG and all(
        "\0" not in word and len(word) < 2**16 and not word.startswith("-") for word in words
    )


def ask_command(case: Case, verdict: Verdict, folder: Path) -> list[Fault]:
    """``ultramem info`` on the same case: the same decision, one paragraph."""
    lay_out(case, folder)
    command = [sys.executable, "-m", "ultramem_launch", "info", case.config, *case.overrides]
    arguments = [os.fsencode(word.encode("utf-8", "surrogatepass")) for word in command]
    try:
        done = subprocess.run(arguments, cwd=folder, capture_output=True, timeout=4 * MOST_SECONDS)
    except subprocess.TimeoutExpired:
        return [Fault.SLOW]
    said = done.stderr.decode("utf-8", "replace")
    if verdict.result is not Result.REFUSED:
        return [] if done.returncode == 0 and not said else [Fault.NOT_AS_THE_COMMAND]
    faults = _faults_of(said.removesuffix("\n"))
    if "Traceback" in said or Fault.TRACEBACK in verdict.faults:
        faults.append(Fault.TRACEBACK)
    if done.returncode != BAD_INPUT or done.stdout:
        faults.append(Fault.NOT_AS_THE_COMMAND)
    return faults
