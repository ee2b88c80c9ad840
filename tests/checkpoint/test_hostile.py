"""Whoever wrote a checkpoint: no verb runs its code or writes outside, and each refuses it by name."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from ultramem_megatron.checkpoint.describe import describe
from ultramem_megatron.checkpoint.reshard import Cut, reshard
from ultramem_megatron.checkpoint.verify import verify
from ultramem_megatron.data.synthetic import SyntheticTokens
from ultramem_megatron.errors import CheckpointError
from ultramem_megatron.testing.distributed import run_distributed
from ultramem_megatron.testing.hostile_checkpoints import CASES, MARK, Case
from ultramem_megatron.testing.layouts import Layout, train_layout
from ultramem_megatron.testing.tiny import tiny_config

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="forked ranks need a machine without CUDA")

STEP = "step_00000001"
LONGEST_MESSAGE = 1500


@pytest.fixture(scope="module")
def runs(megatron: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run's folder for each case."""
    base = tmp_path_factory.mktemp("hostile")
    train_layout(tiny_config("training.stop_after=1"), Layout("1", 1), save=base / "good" / "checkpoints")
    found = {}
    for number, case in enumerate(CASES):
        found[case.name] = base / str(number) / "run"
        shutil.copytree(base / "good", found[case.name])
        case.harm(found[case.name] / "checkpoints" / STEP)
    return found


@pytest.fixture(scope="module")
def loads(runs: dict[str, Path]) -> dict[str, list[str]]:
    """What a resume and ``generate`` say to each, all on one rank."""
    with working_in(next(iter(runs.values())).parent.parent):
        return run_distributed(1, load_all, runs)[0]


def load_all(runs: dict[str, Path]) -> dict[str, list[str]]:
    import torch.distributed as dist

    from ultramem_megatron.planning.choose import choose_plan
    from ultramem_megatron.planning.cluster import local_cluster
    from ultramem_megatron.training.checkpointing import find_start, resume
    from ultramem_megatron.training.setup import build_run_groups, build_train_state
    from ultramem_megatron.training.trained_model import load_newest

    config = tiny_config()
    plan = choose_plan(config, local_cluster(dist.get_world_size()))
    state = build_train_state(config, plan, build_run_groups(config, plan, torch.device("cpu")))

    def resume_from(root: Path) -> None:
        start = find_start(config, root)
        assert start is not None
        resume(state, start, root, SyntheticTokens(seq_length=32, vocab_size=256, seed=1))

    return {
        name: [refusal(resume_from, run / "checkpoints"), refusal(load_newest, run, state.chunks)]
        for name, run in runs.items()
    }


def refusal(function: Any, *arguments: Any) -> str:
    """What it says; empty if it does what it was asked to."""
    try:
        function(*arguments)
    except CheckpointError as error:
        return str(error)
    return ""


@contextmanager
def working_in(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_it_is_refused_by_name_and_does_nothing(
    case: Case, runs: dict[str, Path], loads: dict[str, list[str]], tmp_path: Path
) -> None:
    run = runs[case.name]
    folder = run / "checkpoints" / STEP
    before = sorted(run.parent.rglob("*"))
    (tmp_path / "in" / "ner").mkdir(parents=True)
    with working_in(run.parent):
        looked = refusal(describe, folder)
        verified = refusal(verified_or_raise, folder)
        resharded = refusal(reshard, folder, tmp_path / "in" / "ner" / "out", Cut(row_parts=2))
    resumed, generated = loads[case.name]
    for said in (verified, resharded, resumed, generated):
        assert re.search(case.names, said), said
        assert STEP in said
    for said in (looked, verified, resharded, resumed, generated):
        assert said.isprintable()
        assert len(said) < LONGEST_MESSAGE
    assert sorted(run.parent.rglob("*")) == before
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == []
    assert list(run.parent.parent.rglob(MARK)) == []


def verified_or_raise(folder: Path) -> None:
    if damage := verify(folder).damage:
        raise CheckpointError(f"{folder}: {damage[0]}")


def test_the_same_without_harm_is_taken(runs: dict[str, Path], tmp_path: Path) -> None:
    """Else the refusals say nothing."""
    good = good_run(runs)
    loaded = run_distributed(1, load_all, {"good": good})[0]
    assert loaded == {"good": ["", ""]}
    folder = good / "checkpoints" / STEP
    assert verify(reshard(folder, tmp_path / "out", Cut(row_parts=2))).damage == []
    assert describe(folder)["step"] == 1


@pytest.mark.parametrize("placements", [1, "ab", [1], [{"partition": "a\x1b[2J", "parallel_size": 1}], [{}]])
def test_a_plan_of_another_kind_is_refused(runs: dict[str, Path], tmp_path: Path, placements: Any) -> None:
    folder = Path(shutil.copytree(good_run(runs) / "checkpoints" / STEP, tmp_path / STEP))
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"plan": {"placements": placements}}))
    assert re.search(r"manifest\.json holds no plan", refusal(describe, folder))


def good_run(runs: dict[str, Path]) -> Path:
    return next(iter(runs.values())).parent.parent / "good"
