"""tools/ablate: the numbers of its table by hand, its refusals, and real runs that finish, fail and are stopped."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ultramem_launch.verbs.info import describe
from ultramem_megatron.config.load import load_run_config, to_yaml
from ultramem_megatron.errors import LaunchError
from ultramem_megatron.monitor.sinks import JsonlSink
from ultramem_megatron.testing.programs import ForkedProgram, run_forked

TOOLS = Path(__file__).parents[2] / "tools"
sys.path.insert(0, str(TOOLS))  # as it is for a script started there

from ablation import machine, pictures, processes  # noqa: E402
from ablation.estimates import Estimate, mean_and_sd, paired_difference  # noqa: E402
from ablation.machine import locked  # noqa: E402
from ablation.results import RecipeResult, Results, RunResult  # noqa: E402
from ablation.runs import Run, Study  # noqa: E402
from ablation.sizes import Size  # noqa: E402
from ablation.table import make_table  # noqa: E402

STEPS = 20
TOKENS_PER_STEP = 8 * 32
DENSE = """
model: {layers: 4, hidden: 64, ffn_hidden: 256, heads: 4, seq_length: 32, vocab_size: 512}
memory: {variant: none}
training: {global_batch_size: 8, micro_batch_size: 2, precision: fp32}
data: {synthetic: true}
"""
MACHINE = {"device": "a machine", "jobs": 2, "threads": 1, "torch": "2.13.0", "megatron-core": "0.16.1"}
FINISHED = {**MACHINE, "trained": True, "problem": "", "date": "2026-11-23"}
SETTINGS = ("--set", f"training.steps={STEPS}", "training.eval_interval=10")


def load_tool() -> ModuleType:
    loader = SourceFileLoader("tool_ablate", str(TOOLS / "ablate"))
    spec = spec_from_loader(loader.name, loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``dense.yaml`` is there, and nothing lands in the checkout."""
    monkeypatch.chdir(tmp_path)
    Path("dense.yaml").write_text(DENSE)


def ablate(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """The tool in this process."""
    monkeypatch.setattr(sys, "argv", ["ablate", *words])
    status: int = load_tool().main()
    return status


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes a second."""
    for name in ("draw_loss", "draw_stability"):
        monkeypatch.setattr(pictures, name, lambda results, path: False)


# --- Statistics -------------------------------------------------------------------------------------------------------


def test_mean_and_sample_standard_deviation() -> None:
    found = mean_and_sd([2.0, 4.0, 9.0])  # deviations -3, -1, 4: 26 / 2
    assert found is not None and found.mean == 5.0 and found.count == 3
    assert found.spread == pytest.approx(math.sqrt(13))
    assert mean_and_sd([]) is None
    assert mean_and_sd([3.0]) == Estimate(3.0, None, 1)
    wild = mean_and_sd([math.inf, -math.inf])
    assert wild is not None and math.isnan(wild.mean)


def test_differences_are_paired_by_seed() -> None:
    found = paired_difference({1: 2.0, 2: 5.0, 3: 9.0, 7: 1.0}, {3: 8.0, 1: 3.0, 2: 5.0, 8: 0.0})  # -1, 0, 1
    assert found is not None and found.mean == 0.0 and found.count == 3
    assert found.spread == pytest.approx(1 / math.sqrt(3)), "standard error, not deviation"
    assert paired_difference({1: 2.0}, {2: 2.0}) is None
    assert paired_difference({1: 2.0}, {1: 2.5}) == Estimate(-0.5, None, 1)


# --- The report, from files written by hand ---------------------------------------------------------------------------


def study(*recipes: str, seeds: int = 3, settings: Sequence[str] = (f"training.steps={STEPS}",)) -> Study:
    return Study(
        out=Path("out"),
        recipes=recipes,
        baseline=Path(recipes[0]).stem,
        seeds=seeds,
        settings=tuple(settings),
        tasks=(),
        command="tools/ablate",
    )


def write_run(run: Run, final: float, *, last: int = STEPS, health: bool = False) -> None:
    """Losses of 8.0 until the last two steps: ``final`` - 0.1 and ``final`` + 0.1; validation ``final`` + 1."""
    sink = JsonlSink(run.folder / "metrics.jsonl")
    for step in range(1, last + 1):
        loss = 8.0 if step < STEPS - 1 else final + (0.1 if step == STEPS else -0.1)
        values = {"train/loss": loss, "train/consumed_tokens": float(TOKENS_PER_STEP * step)}
        sink.write(step, {**values, "throughput/step_seconds": 0.5})
        if step % 10 == 0:
            sources = {"validation/loss/moby": final, "validation/loss/words": final + 2}
            sink.write(step, {"validation/loss": final + 1, **sources})
            if health:
                scores = {"memory/top1_score/layer0": 1.0 * step, "memory/top1_score/layer1": 3.0 * step}
                sink.write(step, {**scores, "memory/output_std/layer0": 0.5, "memory/output_std/layer1": 0.25})
    sink.close()
    (run.folder / "config.yaml").write_text(to_yaml(run.config))


def write_study(finals: Mapping[str, Sequence[float]]) -> Study:
    made = study(*finals)
    for run in made.runs:
        write_run(run, finals[run.recipe][run.number], health=run.recipe == "parity")
        run.write_record(**FINISHED)
    return made


FINALS = {"dense.yaml": (2.5, 2.6, 3.0), "parity": (2.0, 2.2, 2.4)}


def rows_of(table: str) -> list[dict[str, str]]:
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]


def test_the_table_equals_a_hand_computed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_study(FINALS)
    assert ablate(monkeypatch, "--out", "out", *FINALS, "--report-only", "--copy-to", "copy") == 0
    table = Path("out/table.md").read_text()
    dense, parity = rows_of(table)
    # sd of 2.5, 2.6, 3.0: sqrt((0.2^2 + 0.1^2 + 0.3^2) / 2); of the differences -0.5, -0.4, -0.6: 0.1, / sqrt(3)
    assert dense["train loss"] == "2.7000 ± 0.2646" and parity["train loss"] == "2.2000 ± 0.2000"
    assert dense["val loss"] == "3.7000 ± 0.2646" and parity["val loss"] == "3.2000 ± 0.2000"
    assert parity["val moby"] == "2.2000 ± 0.2000" and parity["val words"] == "4.2000 ± 0.2000"
    assert parity["Δ row before"] == parity["Δ baseline"] == "-0.5000 ± 0.0577"
    assert dense["Δ row before"] == dense["Δ baseline"] == ""
    assert parity["seconds"] == "10.0"
    assert (dense["dense M"], dense["tables M"], parity["tables M"]) == ("0.197", "0", "0.0655")
    flops = describe(load_run_config(Path("dense.yaml")))["flops_per_token"]
    assert dense["FLOPs/token M"] == f"{flops / 1e6:.3f}" and "experts M" not in parity
    for fact in (
        "device: a machine; runs at a time: 2, threads of each: 1",
        "date: 2026-11-23",
        "versions: torch 2.13.0, megatron-core 0.16.1",
        "tokens per run: 5,120 (20 steps)",
        "seeds: 3 (1234, 1235, 1236)",
        "command: `tools/ablate --out out dense.yaml parity --seeds 3 --jobs 1 --threads 1`",
    ):
        assert f"- {fact}\n" in table
    assert re.search(r"^- parity: \+\d+\.\d% FLOPs per token against the baseline$", table, re.MULTILINE)
    assert table in capsys.readouterr().out
    names = ["loss.png", "results.json", "stability.png", "table.md"]
    assert sorted(path.name for path in Path("copy").iterdir()) == names
    assert all((Path("copy") / name).read_bytes() == (Path("out") / name).read_bytes() for name in names)


def test_results_hold_what_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    write_study(FINALS)
    assert ablate(monkeypatch, "--out", "out", *FINALS, "--report-only") == 0
    results = json.loads(Path("out/results.json").read_text())
    dense, parity = results["recipes"]
    run = parity["runs"][1]
    assert (run["seed"], run["step"], run["seconds"], run["problem"]) == (1235, STEPS, 10.0, "")
    assert run["train_loss"] == pytest.approx(2.2) and run["validation_loss"] == pytest.approx(3.2)
    assert run["validation_loss_by_source"] == pytest.approx({"moby": 2.2, "words": 4.2})
    curves = run["curves"]
    assert curves["train/loss"]["tokens"][-1] == TOKENS_PER_STEP * STEPS and len(curves["train/loss"]["value"]) == STEPS
    assert curves["validation/loss"]["step"] == [10, 20] and curves["validation/loss"]["seconds"] == [5.0, 10.0]
    assert curves["memory/top1_score"]["value"] == [20.0, 40.0], "mean over the layers"
    assert curves["memory/output_std"]["value"] == [0.375, 0.375]
    assert "memory/top1_score" not in dense["runs"][0]["curves"]
    for name in ("loss.png", "stability.png"):
        assert (Path("out") / name).read_bytes()[:4] == b"\x89PNG" and (Path("out") / name).stat().st_size > 10_000


@pytest.mark.usefixtures("no_pictures")
def test_what_is_not_finished_is_told_and_in_no_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    made = write_study(FINALS)
    failed, behind = made.runs_of("parity")[:2]
    shutil.rmtree(failed.folder)
    failed.folder.mkdir()
    failed.write_record(**{**FINISHED, "trained": False, "problem": "training ended with exit status 1, step 0 of 20"})
    shutil.rmtree(behind.folder)
    write_run(behind, 1.0, last=7)
    assert ablate(monkeypatch, "--out", "out", *FINALS, "--report-only") == 1
    table = Path("out/table.md").read_text()
    parity = rows_of(table)[1]
    assert parity["recipe"] == "parity (1 of 3 seeds)"
    assert parity["val loss"] == "3.4000" and parity["Δ baseline"] == "-0.6000", "of the third seed alone"
    assert "- parity, seed 1234: training ended with exit status 1, step 0 of 20\n" in table
    assert "- parity, seed 1235: not finished, step 7 of 20\n" in table


def test_a_report_of_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ablate(monkeypatch, "--out", "out", "parity", "--seeds", "1", "--report-only") == 1
    (row,) = rows_of(Path("out/table.md").read_text())
    assert row["recipe"] == "parity (0 of 1 seeds)" and row["train loss"] == "-"
    assert not list(Path("out").glob("*.png"))
    assert "not started" in Path("out/table.md").read_text()


def test_a_loss_that_is_not_finite_stands_in_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    write_study({**FINALS, "parity": (2.0, math.nan, 2.4)})
    assert ablate(monkeypatch, "--out", "out", *FINALS, "--report-only") == 0
    parity = rows_of(Path("out/table.md").read_text())[1]
    assert parity["val loss"] == "nan ± nan" and parity["Δ baseline"] == "+nan ± nan"
    assert json.loads(Path("out/results.json").read_text())["recipes"][1]["runs"][1]["validation_loss"] is None


@pytest.mark.usefixtures("no_pictures")
def test_the_report_describes_the_run_and_not_the_recipe_of_today(monkeypatch: pytest.MonkeyPatch) -> None:
    write_study(FINALS)
    Path("dense.yaml").write_text(DENSE.replace("layers: 4", "layers: 8"))
    assert ablate(monkeypatch, "--out", "out", *FINALS, "--report-only") == 0
    assert rows_of(Path("out/table.md").read_text())[0]["dense M"] == "0.197"


def test_experts_and_tasks_have_columns() -> None:
    size = Size(dense=1_500_000, tables=0, experts=120_000_000, flops_per_token=3_000_000, steps=10, tokens=100)

    def run(seed: int, accuracy: float, nats: float) -> RunResult:
        tasks = {"phonebook": {"accuracy": accuracy, "nats": nats, "questions": 10, "chance": 0.25}}
        return RunResult(
            seed=seed,
            trained=True,
            problem="",
            step=10,
            train_loss=1.0 + seed,
            validation_loss=None,
            validation_loss_by_source={},
            seconds=1234.6,
            tasks=tasks,
            curves={},
        )

    recipe = RecipeResult(label="moe", size=size, runs=[run(0, 0.5, 1.0), run(1, 0.7, 3.0)])
    other = RecipeResult(label="other", size=size, runs=[run(0, 0.5, 1.0)])
    results = Results(
        command="",
        device="",
        versions="",
        dates="",
        seeds=[0, 1],
        baseline="other",
        tasks=["phonebook"],
        warnings=[],
        recipes=[recipe, other],
    )
    table = make_table(results, [])
    row, last = rows_of(table)
    assert "Guessing gives 25% in phonebook." in table
    assert row["dense M"] == "1.50" and row["experts M"] == "120" and row["tables M"] == "0"
    assert row["phonebook accuracy"] == "60.0 ± 14.1 %" and row["phonebook nats"] == "2.0000 ± 1.4142"
    assert row["seconds"] == "1,235" and "val loss" not in row
    assert row["Δ baseline"] == "+0.0000" and last["Δ row before"] == "+0.0000", "of the training loss, by one seed"


# --- Before anything starts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("parityy",), 'CONFIG "parityy" is neither a YAML file nor a recipe; the nearest recipe is "parity"'),
        (("parity", "--set", "training.stepz=5"), 'unknown key "training.stepz"'),
        (("parity", "--set", "training.seed=5"), "use --seeds"),
        (("parity", "--baseline", "dense.yaml"), "--baseline dense is not among the recipes (parity)"),
        (("parity", "./dense.yaml", "dense.yaml"), "dense is named twice"),
        (("parity", "--task", "phonebok"), '"phonebok" is no task'),
        (("quickstart",), "memory.parallel_size"),
    ],
)
def test_what_cannot_work_is_refused_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], told: str
) -> None:
    assert ablate(monkeypatch, "--out", "out", *words) == 2
    shown = capsys.readouterr()
    assert told in shown.err and shown.err.count("\n") == 1 and shown.out == ""
    assert not Path("out").exists()


def test_a_run_with_other_settings_is_not_taken_for_this_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_study(FINALS)
    assert ablate(monkeypatch, "--out", "out", "parity", *SETTINGS, "optimizer.learning_rate=2e-3") == 2
    told = capsys.readouterr().err
    assert "out/parity/seed0 holds a run with " in told and "--report-only" in told


def test_two_studies_do_not_share_a_folder(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(LaunchError, match="another tools/ablate"), locked(tmp_path):
        pass


def test_a_dry_run_lists_runs_and_what_is_unequal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("longer.yaml").write_text(DENSE.replace("training: {", "training: {steps: 400, "))
    words = ("dense.yaml", "parity", "longer.yaml", "--set", "training.seed=1")
    assert ablate(monkeypatch, "--out", "out", *words[:3], "--seeds", "2", "--task", "phonebook", "--dry-run") == 0
    shown = capsys.readouterr().out
    assert re.search(r"^dense +2 +19[67]\.\d\d k +0 +0 +39[34]\.\d\d k +200 +51,200$", shown, re.MULTILINE)
    assert re.search(r"^! parity: \+\d+\.\d% FLOPs per token against the baseline$", shown, re.MULTILINE)
    assert "! longer: 102,400 tokens, the baseline 51,200" in shown and "! dense" not in shown
    assert "ultramem pretrain parity training.seed=1235 --run-dir out/parity/seed1\n" in shown
    assert "ultramem eval --run-dir out/longer/seed0 --task phonebook\n" in shown
    assert not Path("out").exists()


# --- Processes --------------------------------------------------------------------------------------------------------

STAND_IN = """
import json, pathlib, sys, time
verb, words = sys.argv[1], sys.argv[2:]
folder = pathlib.Path(words[words.index("--run-dir") + 1])
with open("calls", "a") as calls:
    calls.write(f"{verb} {folder.parent.name} {folder.name}\\n")
if verb == "eval":
    (folder / "eval").mkdir()
    for task in [word for option, word in zip(words, words[1:]) if option == "--task"]:
        answer = {"task": task, "step": 20, "accuracy": 0.5, "nats": 1.5, "questions": 4, "chance": 0.25}
        (folder / "eval" / f"{task}.json").write_text(json.dumps(answer))
    sys.exit(0)
if words[0] == "dense.yaml" and folder.name == "seed0" and not pathlib.Path("mended").exists():
    sys.exit("these are its last words")
with (folder / "metrics.jsonl").open("a") as lines:
    for step in range(1, 21):
        numbers = {"train/loss": 3.0, "train/consumed_tokens": 256.0 * step, "throughput/step_seconds": 0.1}
        lines.write(json.dumps({"step": step, "time": time.time(), **numbers}) + "\\n")
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_pictures: None) -> Path:
    """A program in the place of ``ultramem``, and the file of its calls."""
    program = tmp_path / "stand_in.py"
    program.write_text(STAND_IN)
    monkeypatch.setattr(processes, "ULTRAMEM", (sys.executable, str(program)))
    monkeypatch.setattr(processes, "PROGRESS_SECONDS", 0.0)
    monkeypatch.setattr(machine, "look_at_machine", lambda: MACHINE)
    return tmp_path / "calls"


@pytest.mark.slow
def test_each_run_is_trained_once_and_asked_once(
    stand_in: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--out", "out", "dense.yaml", "parity", "--seeds", "2", "--set", f"training.steps={STEPS}")
    assert ablate(monkeypatch, *words) == 1
    shown = capsys.readouterr().out
    assert "dense seed0: FAILED: training ended with exit status 1, step 0 of 20" in shown
    assert "  | these are its last words" in shown
    order = [f"pretrain {label} seed{number}" for number in (0, 1) for label in ("dense", "parity")]
    assert stand_in.read_text().splitlines() == order, "a failed run does not stop the others"

    stand_in.unlink()
    Path("mended").touch()
    assert ablate(monkeypatch, *words, "--task", "phonebook", "--task", "world", "--jobs", "3") == 0
    calls = stand_in.read_text().splitlines()
    assert [call for call in calls if "pretrain" in call] == ["pretrain dense seed0"]
    assert sorted(call for call in calls if "eval" in call) == sorted(
        call.replace("pretrain", "eval") for call in order
    )
    dense, parity = rows_of(Path("out/table.md").read_text())
    assert dense["phonebook accuracy"] == parity["world accuracy"] == "50.0 ± 0.0 %"

    stand_in.unlink()
    assert ablate(monkeypatch, *words, "--task", "phonebook") == 0
    assert not stand_in.exists(), "nothing was left to do"


@pytest.fixture
def forked_runs(warm: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The runs that the tool starts are forks, as it is itself."""
    monkeypatch.setattr(subprocess, "Popen", ForkedProgram)


def run_tool(*words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(TOOLS / "ablate"), *words]
    return run_forked(command)


@pytest.mark.slow
@pytest.mark.usefixtures("forked_runs")
def test_real_runs_finish_and_one_recipe_fails() -> None:
    Path("broken.yaml").write_text("model: {layers: 4}\nmemory: {variant: none}\ndata: {folder: nowhere}\n")
    settings = ("training.steps=6", "training.eval_interval=3", "training.eval_batches=1", "monitor.memory_interval=2")
    words = ("--out", "out", "parity", "broken.yaml", "--seeds", "2", "--jobs", "2", "--set", *settings)
    ran = run_tool(*words)
    assert ran.returncode == 1, ran.stdout + ran.stderr
    table = Path("out/table.md").read_text()
    parity, broken = rows_of(table)
    assert parity["recipe"] == "parity" and float(parity["val loss"].split()[0]) == pytest.approx(6.2, abs=0.1)
    assert broken["recipe"] == "broken (0 of 2 seeds)" and broken["Δ baseline"] == "-"
    assert "- broken, seed 1235: training ended with exit status 2, step 0 of 6" in table
    assert "nowhere" in Path("out/broken/seed0/ablate.log").read_text()
    assert "parity seed1: done, step 6/6, loss 6." in ran.stdout
    assert "CPU cores" in table and "not recorded" not in table
    results = json.loads(Path("out/results.json").read_text())
    top1 = [run["curves"]["memory/top1_score"]["step"] for run in results["recipes"][0]["runs"]]
    assert top1 == [[2, 4, 6], [2, 4, 6]]

    before = {path: path.stat().st_mtime_ns for path in Path("out/parity").rglob("*")}
    again = run_tool(*words[:3], *words[4:])
    assert again.returncode == 0, again.stdout + again.stderr
    assert "2 of 2 runs are finished" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in Path("out/parity").rglob("*")} == before


@pytest.mark.slow
@pytest.mark.usefixtures("forked_runs")
def test_ctrl_c_lets_the_runs_save() -> None:
    command = [sys.executable, str(TOOLS / "ablate"), "--out", "out", "parity", "--seeds", "1"]
    settings = ["--set", "training.steps=100000", "training.eval_interval=0"]
    tool = ForkedProgram([*command, *settings], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    metrics = Path("out/parity/seed0/metrics.jsonl")
    deadline = time.monotonic() + 60
    while not (metrics.is_file() and metrics.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.05)
    tool.send_signal(signal.SIGINT)
    shown, _ = tool.communicate(timeout=60)
    assert tool.returncode == 130, shown
    assert shown.endswith("stopped; the same command goes on\n") and "Traceback" not in shown
    with locked(Path("out")):  # which a run that is left would hold
        assert list(Path("out/parity/seed0/checkpoints").glob("step_*")), "it saved"


def test_threads_are_limited(tmp_path: Path) -> None:
    crew = processes.Crew(jobs=1, threads=3, machine={}, lock=0)
    assert {crew.environment[name] for name in ("OMP_NUM_THREADS", "OMP_THREAD_LIMIT")} == {"3"}
    assert crew.environment.get("CUDA_VISIBLE_DEVICES") == os.environ.get("CUDA_VISIBLE_DEVICES")


def test_progress_tells_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    (run,) = study("parity", seeds=1).runs
    job: Any = processes.Job(run, processes.deque())
    assert processes.progress(job) == "no step yet, 0:00:01 elapsed"
    run.folder.mkdir(parents=True)
    lines = [{"step": step, "time": 1000.0 + 10 * step, "train/loss": 5.0} for step in (4, 5, 6)]
    (run.folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 7, "ti')
    monkeypatch.setattr(processes.time, "time", lambda: 1064.0)  # 4 s into step 7; 14 steps of 10 s
    told = processes.progress(job)
    assert told.startswith("step 6/20, loss 5.0000, 0:00:01 elapsed, ends about ") and told.endswith("(in 0:02:16)")
