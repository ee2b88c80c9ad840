"""The verbs that meet damaged files, and what each of them gives."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from damaging.calls import Ended
from damaging.stage import CONFIG, DATA, RUN
from ultramem_launch.verbs import data as data_verbs
from ultramem_megatron.checkpoint.manifest import MANIFEST
from ultramem_megatron.checkpoint.store import checkpoint_folders

Result = Callable[[Ended, Path], str]
"""What a call has brought about, given how it ended and the folder of the case."""


def _printed(ended: Ended, case: Path) -> str:
    return ended.out


def _nothing(ended: Ended, case: Path) -> str:
    """For one that shows what others wrote."""
    return ""


def _trained(ended: Ended, case: Path) -> str:
    """Step, loss and digests of all tensors at the end of a run."""
    newest = checkpoint_folders(case / RUN / "checkpoints")[0]
    manifest = json.loads((newest / MANIFEST).read_text())
    last = json.loads((case / RUN / "metrics.jsonl").read_text().splitlines()[-1])
    facts = {name: last.get(name) for name in ("step", "train/loss", "validation/loss")}
    return json.dumps([facts, manifest["digests"]], sort_keys=True)


@dataclass(frozen=True, slots=True)
class Verb:
    """One, and what is to be expected of it."""

    name: str
    arguments: tuple[str, ...]
    """Relative to the folder of the case."""
    meets: tuple[str, ...]
    """Folders whose files are damaged for it."""
    result: Result = _printed
    answers_for: Callable[[str], bool] = lambda file: False
    """Files, by their path in the case, in which it must find any change."""
    until: str = ""
    """See ``call``."""
    passes: Callable[[str], bool] = lambda file: False
    """Files that it never opens, so that it need not be started for them."""


def _in_newest_checkpoint(file: str) -> bool:
    return file.startswith(f"{RUN}/checkpoints/step_00000004/")


def _of_data(file: str) -> bool:
    return file.startswith(f"{DATA}/") and "/index_cache/" not in file


def _of_a_checkpoint(file: str) -> bool:
    return file.startswith(f"{RUN}/checkpoints/")


def all_verbs() -> list[Verb]:
    """Those that this version of the program has."""
    run = ("--run-dir", RUN)
    verbs = [
        Verb("resume", ("pretrain", CONFIG, *run), (RUN, DATA), _trained),
        Verb("checkpoint verify", ("checkpoint", "verify", RUN), (RUN,), answers_for=_in_newest_checkpoint),
        Verb("checkpoint info", ("checkpoint", "info", RUN), (RUN,)),
        Verb("info", ("info", f"{RUN}/config.yaml"), (RUN,), passes=_of_a_checkpoint),
        Verb("data verify", ("data", "verify", DATA), (DATA,), answers_for=_of_data),
        Verb("data info", ("data", "info", DATA), (DATA,)),
        Verb("generate", ("generate", *run, "--tokens", "16"), (RUN, DATA)),
        Verb("eval", ("eval", *run, "--task", "loss", "--task", "phonebook", "--json"), (RUN, DATA)),
        Verb("monitor", ("monitor", *run, "--json"), (RUN,), _nothing, until='"url"', passes=_of_a_checkpoint),
    ]
    has_verify = any(one.callback and one.callback.__name__ == "verify" for one in data_verbs.app.registered_commands)
    return [verb for verb in verbs if verb.name != "data verify" or has_verify]
