"""What a user can get wrong, through the real command: one paragraph, exit status 2, nothing written."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from ultramem_launch.__main__ import app, main
from ultramem_launch.place import RANK_VARIABLES
from ultramem_launch.slurm.folder import JobFolder
from ultramem_megatron.testing.programs import run_forked
from ultramem_megatron.testing.tiny import write_tiny_config

Ultramem = Callable[..., "subprocess.CompletedProcess[str]"]

TREES = ["ash", "birch", "cedar", "elm", "fir", "hazel", "larch", "maple"]
TORCHRUN = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}


@pytest.fixture
def ultramem(warm: None, tmp_path: Path) -> Ultramem:
    """``ultramem(*arguments, **variables)``: the command in ``tmp_path``, beside ``tiny.yaml``; a fork."""
    write_tiny_config(tmp_path)
    outside = {name: value for name, value in os.environ.items() if name not in RANK_VARIABLES}
    environment = {**outside, "PYTHONWARNINGS": "ignore"}

    def run(*arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "ultramem_launch", *arguments]
        return run_forked(command, cwd=tmp_path, env={**environment, **variables}, timeout=120)

    return run


def assert_refused(result: "subprocess.CompletedProcess[str]", message: str) -> None:
    """``message``: a regular expression for the paragraph."""
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr + result.stdout
    paragraphs = [line for line in result.stderr.splitlines() if re.match(r"\w+Error: ", line)]
    assert len(paragraphs) == 1, result.stderr
    assert result.stderr.endswith(paragraphs[0] + "\n")
    assert re.search(message, paragraphs[0]), paragraphs[0]


BEFORE_ANY_PROCESS = [
    (["memory.topm=4"], r'^ConfigError: memory\.topm=4: unknown key "memory\.topm"; the nearest .* "memory\.top_m"$'),
    (["memory.keys_per_side=0"], r"^ConfigError: memory\.keys_per_side = 0 must be greater than 0; set a positive"),
    (["memory.keys_per_side=-4"], r"^ConfigError: memory\.keys_per_side = -4 must be greater than 0"),
    (["memory.top_m=33"], r"^ConfigError: memory\.top_m = 33 exceeds the 32 row keys of a head .* lower top_m"),
    (["memory.expansion=6"], r"^ConfigError: memory\.expansion = 6 is not a square, .* squares are 4 and 9$"),
    (["memory.spans=1:3"], r"^ConfigError: memory\.spans: span 1:3 is out of range, .* model\.layers = 2 blocks"),
    (["memory.spans=2:1"], r'^ConfigError: memory\.spans = "2:1": span 2:1 is out of range or runs backwards'),
    (["memory.parallel_size=2"], r"^ConfigError: memory\.parallel_size = 2 must divide the ranks .* = 3; .* 1, 3$"),
    (["training.global_batch_size=8"], r"^ConfigError: training\.global_batch_size = 8 must be .* near it .* 6, 12$"),
    (["training.steps=many"], r"^ConfigError: training\.steps = 'many' has the wrong type"),
    (["steps"], r'^ConfigError: override "steps" is not of the form section\.key=value'),
]


@pytest.mark.parametrize(
    ("overrides", "message"), BEFORE_ANY_PROCESS, ids=[overrides[0] for overrides, _ in BEFORE_ANY_PROCESS]
)
def test_refused_before_any_process_starts(
    ultramem: Ultramem, tmp_path: Path, overrides: list[str], message: str
) -> None:
    batch = [] if "global_batch_size" in overrides[0] else ["training.global_batch_size=6"]
    result = ultramem("pretrain", "tiny.yaml", *batch, *overrides, "--run-dir", "run", "--local", "3")
    assert_refused(result, message)
    assert result.stdout == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny.yaml"]


def test_no_launcher_inside_torchrun(ultramem: Ultramem, tmp_path: Path) -> None:
    result = ultramem("pretrain", "tiny.yaml", "--run-dir", "run", "--local", "4", **TORCHRUN)
    assert_refused(result, r"^LaunchError: --local 4 starts 4 processes, .*RANK=0, WORLD_SIZE=2.* leave --local out")
    assert not (tmp_path / "run").exists()


def test_a_launcher_that_sets_half_of_the_variables(ultramem: Ultramem, tmp_path: Path) -> None:
    result = ultramem("pretrain", "tiny.yaml", "--run-dir", "run", RANK="0", WORLD_SIZE="2")
    assert_refused(result, r'^LaunchError: LOCAL_RANK = "" should be a number: .* start with torchrun or --local$')
    assert not (tmp_path / "run").exists()


def test_a_file_where_the_run_folder_should_be(ultramem: Ultramem, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    result = ultramem("pretrain", "tiny.yaml", "--run-dir", "run", "--local", "1")
    assert_refused(result, r"^LaunchError: --run-dir run is a file; name a folder")
    assert (tmp_path / "run").read_text() == "mine"


@pytest.mark.slow
def test_the_wrong_apex(ultramem: Ultramem, tmp_path: Path) -> None:
    package = tmp_path / "elsewhere" / "apex"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('it must not be imported')\n")
    result = ultramem("pretrain", "tiny.yaml", "--run-dir", "run", "--local", "2", PYTHONPATH=str(package.parent))
    assert_refused(result, rf"^ConfigError: .* at {package}/__init__\.py is not NVIDIA's apex: .* Remedy: rename it")
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One source of random words, with its tokenizer."""
    from ultramem_megatron.data.build import build
    from ultramem_megatron.data.tokenizer import make_tokenizer

    root = tmp_path_factory.mktemp("data")
    draw = random.Random(0)
    (root / "raw").mkdir()
    texts = [" ".join(draw.choices(TREES, k=40)) for _ in range(300)]
    lines = [json.dumps({"id": f"trees/{number}", "text": text}) for number, text in enumerate(texts)]
    (root / "raw" / "trees.jsonl").write_text("\n".join(lines) + "\n")
    make_tokenizer(root / "raw", root / "out", 300)
    build(root / "raw", root / "out", workers=1)
    return root / "out"


def remove_bin(binary: Path) -> None:
    binary.unlink()


def cut_bin(binary: Path) -> None:
    os.truncate(binary, binary.stat().st_size - 10)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        pytest.param(
            remove_bin,
            r"^DataError: data/trees/train\.bin does not exist; make it with `ultramem data build --out data`",
            id="missing",
        ),
        pytest.param(
            cut_bin,
            r"^DataError: data/trees/train\.bin has \d+ bytes, but its index train\.idx speaks of .* was cut off",
            id="cut-off",
        ),
    ],
)
def test_a_damaged_bin(
    ultramem: Ultramem, data_folder: Path, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    shutil.copytree(data_folder, tmp_path / "data")
    damage(tmp_path / "data" / "trees" / "train.bin")
    before = sorted((tmp_path / "data").rglob("*"))
    settings = ("data.synthetic=false", "data.folder=data", "model.vocab_size=300")
    assert_refused(ultramem("pretrain", "tiny.yaml", *settings, "--run-dir", "run"), message)
    assert not (tmp_path / "run").exists()
    assert sorted((tmp_path / "data").rglob("*")) == before


@pytest.mark.slow
def test_a_checkpoint_with_a_shard_missing(ultramem: Ultramem, tmp_path: Path) -> None:
    """It is refused by name, and the run goes on from the one before it; when none is left, it does not start over."""
    command = ("pretrain", "tiny.yaml", "--run-dir", "run")
    assert ultramem(*command, "training.stop_after=4").returncode == 75
    checkpoints = tmp_path / "run" / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["latest", "step_00000002", "step_00000004"]
    first_losses = losses(tmp_path)
    shard = next((checkpoints / "step_00000004").glob("*.distcp"))
    shard.unlink()

    result = ultramem(*command, "training.stop_after=6")
    assert result.returncode == 75, result.stderr
    assert f"checkpoint run/checkpoints/step_00000004 is damaged: {shard.name} is missing; restore it" in result.stderr
    assert list(losses(tmp_path)) == [1, 2, 3, 4, 5, 6]
    assert {step: losses(tmp_path)[step] for step in first_losses} == first_losses
    assert "step 3/8" in result.stdout, "it goes on from step 2"

    for path in checkpoints.glob("step_*/*.distcp"):
        path.unlink()
    before = sorted(path for path in (tmp_path / "run").rglob("*"))
    refused = ultramem(*command)
    assert_refused(refused, r"^CheckpointError: no checkpoint of run/checkpoints is usable, .*step_00000006 is damaged")
    assert sorted(path for path in (tmp_path / "run").rglob("*")) == before


def losses(folder: Path) -> dict[int, float]:
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert len({record["step"] for record in records}) == len(records)
    return {record["step"]: record["train/loss"] for record in records}


NOWHERE = "/proc/nothing"
"""No file can be made below it, whoever asks."""
REFUSALS: list[tuple[tuple[str, ...], str]] = [
    (("info", "missing.yaml"), r"^ConfigError: .*missing\.yaml"),
    (("info", "nothing-like-it"), r'^ConfigError: CONFIG "nothing-like-it" is neither .* the nearest recipe is'),
    (
        ("plan", "tiny.yaml", "--cluster", "local:1", "--save", f"{NOWHERE}/plan.json"),
        r"^FileError: /proc/nothing/plan\.json cannot be written",
    ),
    (
        ("plan", "tiny.yaml", "--cluster", "local:1", "--save", "/dev/full"),
        r"^FileError: /dev/full cannot be written: No space left on device",
    ),
    (
        ("plan", "tiny.yaml", "--cluster", "local:1", "--save", "tiny.yaml/plan.json"),
        r"^FileError: tiny\.yaml/plan\.json cannot be written: ",
    ),
    (
        ("plan", "tiny.yaml", "--cluster", "local:1", "--save", "folder"),
        r"^FileError: folder cannot be written: Is a directory; .* name a file",
    ),
    (
        ("plan", "tiny.yaml", "--cluster", "local:1", "--save", "n" * 250),
        r"^FileError: n+ cannot be written: File name too long; choose",
    ),
    (("plan", "tiny.yaml", "--cluster", "missing.json"), r"^PlanError: .*missing\.json"),
    (("plan", "tiny.yaml", "--cluster", "folder"), r"^PlanError: .*folder"),
    (("volume", "--tokens", "0"), r"^PlanError: --tokens"),
    (("volume", "--figure9", f"{NOWHERE}/a.png"), r"^FileError: /proc/nothing/a\.png cannot be written"),
    (("volume", "--figure9", "a.txt"), r"^LaunchError: --figure9 a\.txt should end in one of .*\.png"),
    (("sweep", "tiny.yaml", "--nodes", "1", "--csv", f"{NOWHERE}/a.csv"), r"^FileError: /proc/nothing/a\.csv cannot"),
    (("calibrate", "--out", f"{NOWHERE}/a.json"), r"^FileError: /proc/nothing/a\.json cannot be written"),
    (("calibrate", "--local", "2", "--out", "folder"), r"^FileError: folder cannot be written: Is a directory"),
    (("validate", "missing.json", "--profile", "cpu-loopback"), r"^PlanError: .*missing\.json"),
    (("pretrain", "tiny.yaml", "--run-dir", f"{NOWHERE}/run"), r"^FileError: /proc/nothing/run.* cannot be written"),
    (
        ("pretrain", "tiny.yaml", "--run-dir", "tiny.yaml"),
        r"^LaunchError: --run-dir tiny\.yaml is a file; name a folder",
    ),
    (("pretrain", "tiny.yaml", "--run-dir", "tiny.yaml/run"), r"^FileError: tiny\.yaml/run.* cannot be written: "),
    (("pretrain", "tiny.yaml", "--run-dir", f"{NOWHERE}/run", "--local", "2"), r"^FileError: /proc/nothing/run"),
    (("submit", "tiny.yaml", "--run-dir", "run", "--site", "missing.yaml"), r"^ConfigError: site file missing\.yaml"),
    (("submit", "tiny.yaml", "--run-dir", f"{NOWHERE}/run", "--gpus-per-node", "0"), r"^FileError: /proc/nothing/run"),
    (("status", "--run-dir", "folder"), r"^LaunchError: --run-dir folder: no job was submitted for it"),
    (("logs", "--run-dir", "folder"), r"^LaunchError: --run-dir folder: no job was submitted for it"),
    (("cancel", "--run-dir", "torn"), r"^LaunchError: torn/job/submissions\.json is damaged, .*`squeue --me`"),
    (("requeue", "--run-dir", "torn"), r"^LaunchError: torn/job/submissions\.json is damaged"),
    (("status", "--run-dir", "torn"), r"^LaunchError: torn/job/submissions\.json is damaged"),
    (("logs", "--follow", "--run-dir", "torn"), r"^LaunchError: torn/job/submissions\.json is damaged"),
    (
        ("eval", "--task", "loss", "--run-dir", "missing"),
        r"^LaunchError: --run-dir missing is no folder; name that of a run",
    ),
    (("generate", "--run-dir", "tiny.yaml"), r"^LaunchError: --run-dir tiny\.yaml is no folder; name that of a run"),
    (("monitor", "--run-dir", "missing"), r"^LaunchError: --run-dir missing does not exist"),
    (("monitor", "--run-dir", "folder"), r"^LaunchError: --run-dir folder holds no tensorboard/ folder"),
    (("checkpoint", "info", "folder"), r"^CheckpointError: folder holds no checkpoint"),
    (("checkpoint", "verify", "missing"), r"^CheckpointError: missing holds no checkpoint"),
    (
        ("checkpoint", "reshard", "folder", "--out", "out", "--ranks", "2"),
        r"^CheckpointError: folder holds no checkpoint",
    ),
    (("data", "fetch", "--source", "nothing"), r"^DataError: .*nothing"),
    (("data", "tokenizer", "--raw", "missing", "--out", "out"), r"^DataError: .*missing"),
    (("data", "build", "--raw", "missing", "--out", "missing"), r"^DataError: .*missing"),
    (("data", "prepare", "--source", "nothing"), r"^DataError: .*nothing"),
    (("data", "recall", "--task", "nothing"), r"^DataError: .*nothing"),
    (("data", "info", "missing"), r"^DataError: missing"),
    (("data", "verify", "missing"), r"^DataError: missing does not exist"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSALS, ids=[" ".join(one[0])[:60] for one in REFUSALS])
def test_what_every_verb_refuses(
    arguments: tuple[str, ...],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In this process, as ``main`` ends it: one paragraph, exit status 2, nothing written."""
    write_tiny_config(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "torn" / "job").mkdir(parents=True)
    (tmp_path / "torn" / "job" / "submissions.json").write_text('[\n  {\n    "jo')
    monkeypatch.chdir(tmp_path)
    for name in RANK_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.argv", ["ultramem", *arguments])
    handler = signal.getsignal(signal.SIGTERM)
    before = sorted(tmp_path.rglob("*"))
    try:
        with pytest.raises(SystemExit) as ended:
            main()
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert_refused(subprocess.CompletedProcess(arguments, int(ended.value.code or 0), *capsys.readouterr()), message)
    assert sorted(tmp_path.rglob("*")) == before


def test_every_verb_has_a_refusal_in_the_table() -> None:
    tried = {words for arguments, _ in REFUSALS for words in (arguments[:1], arguments[:2])}
    top = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    verbs = {
        (name, *inner)
        for name, verb in top.items()
        for inner in ([(one,) for one in getattr(verb, "commands", ())] or [()])
    }
    assert verbs - tried == {("doctor",), ("recipes",)}


@pytest.mark.parametrize(
    "text",
    [
        '[{"job": "1"}, {"job": "2_0"}, {"jo',
        '{"job": "1"} {"job": "2_0"}',
        '[{"job": "1"}, {"job": "2_0"}, {"job": 3}, 7',
    ],
)
def test_jobs_before_a_tear_are_known(tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    folder = JobFolder(tmp_path)
    folder.job.mkdir()
    folder.submissions.write_text(text)
    assert folder.job_ids() == ["1", "2_0"]
    assert "submissions.json is damaged: " in caplog.text
    folder.add_submission("3")
    caplog.clear()
    assert folder.job_ids() == ["1", "2_0", "3"]
    assert not caplog.text


@pytest.mark.parametrize("text", ["", "[", "nothing", "[" * 100_000, '[{"name": 1}]', "\x00\x00", "{}", "[[]]"])
def test_starts_that_cannot_be_read_are_passed_over(tmp_path: Path, text: str) -> None:
    folder = JobFolder(tmp_path)
    folder.job.mkdir()
    folder.attempts.write_text(text)
    assert folder.read_attempts() == []


def test_what_cannot_be_shown_or_written_is_no_traceback(ultramem: Ultramem, tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "ultramem_launch", "recipes"]
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    result.stdout = ""
    assert_refused(result, r"^FileError: standard output cannot be written: No space left on device")
    head = subprocess.run(
        f"'{sys.executable}' -m ultramem_launch recipes | head -n 1", shell=True, capture_output=True, text=True
    )
    assert (head.returncode, head.stderr) == (0, "")
