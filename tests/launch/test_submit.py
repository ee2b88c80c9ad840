"""``ultramem submit``: the script, what is asked for, what is written, and what is refused before anything is."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ultramem_launch.__main__ import app
from ultramem_launch.slurm.array import read_sweep
from ultramem_launch.slurm.client import find_state, requeue
from ultramem_launch.slurm.folder import JobFolder
from ultramem_launch.slurm.progress import is_active
from ultramem_launch.slurm.request import JobRequest, limit_seconds, parse_sbatch_options, ranks_of_node
from ultramem_launch.slurm.script import Place, option_text, render_script
from ultramem_launch.slurm.site import Site, load_site
from ultramem_megatron.errors import ConfigError, LaunchError
from ultramem_megatron.testing.tiny import write_tiny_config

GOLDEN = Path(__file__).parent / "golden"
NASTY = [
    "a b",
    "it's",
    'say "hi"',
    "$(touch injected)",
    "`touch injected`",
    "a;touch injected",
    "@run_dir@",
    "100%",
    "é",
]


def request(**changes: object) -> JobRequest:
    usual = {"name": "tiny", "nodes": "2", "gpus_per_node": 0, "tasks_per_node": 2}
    return JobRequest(**{**usual, **changes})  # type: ignore[arg-type]


def place(run_dir: str = "/shared/runs/first", *more: str) -> Place:
    paths = [Path(run_dir), *map(Path, more)]
    return Place(run_dirs=paths, home=paths[0], work_dir=Path("/home/me/work"), python="/env/bin/python")


CASES = {
    "cpu": (request(), Site(), place()),
    "gpu-limit-site": (
        request(
            name="ultramem-1.6b-x12",
            nodes="2-4",
            gpus_per_node=8,
            tasks_per_node=8,
            cpus_per_task=8,
            time="1-00:00:00",
            sbatch={"account": "lm", "qos": "high", "constraint": "a100&nvlink"},
            container_image="nvcr.io#nvidia/pytorch:25.06-py3",
        ),
        Site(
            environment={"NCCL_IB_HCA": "mlx5_0,mlx5_1", "NCCL_SOCKET_IFNAME": "ib0"},
            setup=["module load cuda/12.8"],
            sbatch={"partition": "batch", "account": "overruled"},
            srun=["--mpi=none"],
            container_mounts=["/datasets:/datasets"],
        ),
        place(),
    ),
    "array-chain": (
        request(chain=3, preflight="nodes", time="90"),
        Site(),
        place("/shared/runs/sweep/a", "/shared/runs/sweep/b"),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_scripts_are_as_they_were(name: str) -> None:
    """After a wanted change, run this with ULTRAMEM_WRITE_GOLDEN=1, and read the diff."""
    script, golden = render_script(*CASES[name]), GOLDEN / f"{name}.sbatch"
    if os.environ.get("ULTRAMEM_WRITE_GOLDEN"):
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(script)
    assert script == golden.read_text()


@pytest.mark.parametrize("name", CASES)
def test_scripts_are_good_bash(name: str, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text(render_script(*CASES[name]))
    for command in (["bash", "-n"], [Path(sys.executable).with_name("shellcheck")]):
        done = subprocess.run([*command, str(script)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    assert not re.search(r"@[a-z_]+@", script.read_text())


@pytest.mark.parametrize("value", NASTY)
def test_no_value_breaks_out_of_the_script(tmp_path: Path, value: str) -> None:
    """The head of the script runs in bash up to where the job would begin, and prints what it was told."""
    site = Site(environment={"TOLD": value}, srun=[f"--x={value}"])
    asked = request(name=value, container_image=value, sbatch={"comment": value})
    script = render_script(asked, site, place(f"/runs/{value}"))
    head = script.partition("# ---- this start of the job")[0]
    (tmp_path / "head").write_text(head + 'printf "%s\\n" "$RUN_DIR" "$TOLD" "${SRUN_OPTIONS[@]}"\n')
    done = subprocess.run(["bash", "head"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[:3] == [f"/runs/{value}", value, f"--x={value}"]
    assert f"--container-image={value}" in done.stdout
    assert [file.name for file in tmp_path.iterdir()] == ["head"]
    options = [line for line in script.splitlines() if line.startswith("#SBATCH")]
    assert shlex.split(options[0].removeprefix("#SBATCH ")) == [f"--job-name={value}"] or "`" in value or "$" in value


@pytest.mark.parametrize("value", ["two\nlines", "carriage\rreturn", "nul\0", "esc\x1b[0m"])
def test_a_line_break_cannot_be_quoted_and_is_refused(value: str) -> None:
    with pytest.raises(LaunchError, match="line break or another character that cannot be printed"):
        request(name=value)
    with pytest.raises(LaunchError, match="cannot be printed"):
        request(sbatch={"comment": value})
    with pytest.raises(LaunchError, match="cannot be printed"):
        render_script(request(), Site(), place(f"/runs/{value}"))
    with pytest.raises(LaunchError, match="cannot be printed"):
        render_script(request(container_image=value), Site(), place())


@pytest.mark.parametrize(
    ("value", "text"),
    [("", "--x"), ("a,b", "--x=a,b"), ("a b", '--x="a b"'), ('a"b', r'--x="a\"b"'), ("a\\b", r'--x="a\\b"')],
)
def test_options_are_quoted_as_sbatch_reads_them(value: str, text: str) -> None:
    assert option_text("x", value) == text


@pytest.mark.parametrize(
    ("given", "found"), [((None, None), (8, 8)), ((4, None), (4, 4)), ((None, 2), (0, 2)), ((0, None), (0, 1))]
)
def test_ranks_of_a_node(given: tuple[int | None, int | None], found: tuple[int, int]) -> None:
    assert ranks_of_node(*given) == found


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nodes": "0"}, '--nodes "0" must be a number such as 4, or a range'),
        ({"nodes": "4-2"}, '--nodes "4-2"'),
        ({"nodes": "2; reboot"}, "--nodes"),
        ({"gpus_per_node": 8, "tasks_per_node": 4}, "--tasks-per-node 4 contradicts --gpus-per-node 8"),
        ({"time": "soon"}, '--time "soon" must be minutes'),
        ({"time": "5"}, "--time 5 is 300 s, and --stop-before 300"),
        ({"chain": 0}, "--chain 0 must be at least 1"),
        ({"preflight": "some"}, '--preflight "some" must be one of all, nodes, none'),
    ],
)
def test_what_cannot_be_asked_for(changes: dict[str, object], message: str) -> None:
    with pytest.raises(LaunchError, match=re.escape(message)):
        request(**changes)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 5400), ("2:30", 150), ("24:00:00", 86400), ("2-0", 172800), ("1-12:30", 131400), ("1-00:00:05", 86405)],
)
def test_time_limits(text: str, seconds: int) -> None:
    assert limit_seconds(text) == seconds


def test_options_that_the_job_decides_are_refused() -> None:
    assert parse_sbatch_options(["mail-type=END", "exclusive"]) == {"mail-type": "END", "exclusive": ""}
    with pytest.raises(LaunchError, match="--sbatch output: logs lie in the run folder"):
        parse_sbatch_options(["output=x"])
    with pytest.raises(LaunchError, match="--sbatch time: use --time, from which the run knows when to save"):
        parse_sbatch_options(["time=1:00:00"])
    with pytest.raises(LaunchError, match='--sbatch "--mail-type=END" must be the long name'):
        parse_sbatch_options(["--mail-type=END"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("acount: lm", 'unknown key "acount"'),
        ("environment: [A]", "environment = .* must be names with values"),
        ("environment: {'A B': 1}", '"A B" is no name of a variable'),
        ("sbatch: {--account: lm}", '"--account" is no long option'),
        ("sbatch: {output: x}", "logs lie in the run folder"),
        ("free_gib: much", "must be a number"),
        ("- a", "must hold keys"),
    ],
)
def test_a_site_file_that_cannot_be(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "site.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_site(tmp_path / "site.yaml")


def test_a_sweep(tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text("runs: {low: [optimizer.learning_rate=1e-4], high: []}")
    assert read_sweep(file) == {"low": ["optimizer.learning_rate=1e-4"], "high": []}
    file.write_text("grid: {training.seed: [1, 2], parallelism.sequence: [false]}")
    assert read_sweep(file) == {
        "seed-1_sequence-false": ["training.seed=1", "parallelism.sequence=false"],
        "seed-2_sequence-false": ["training.seed=2", "parallelism.sequence=false"],
    }
    for bad in ("", "runs: {}", "runs: {../x: []}", "grid: {a.b: 1}", "runs: {a: x}", "other: 1"):
        file.write_text(bad)
        with pytest.raises(ConfigError, match="--array"):
            read_sweep(file)


@pytest.fixture
def sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An sbatch that notes its arguments and gives out job ids; a squeue that knows of no job."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "sbatch").write_text(f'#!/bin/sh\necho "$@" >>{folder}/calls\nwc -l <{folder}/calls\n')
    (folder / "squeue").write_text(f"#!/bin/sh\ncat {folder}/queue 2>/dev/null\n")
    for name in ("scontrol", "sacct"):  # this machine may run a Slurm
        (folder / name).write_text("#!/bin/sh\nexit 1\n")
    for name in ("sbatch", "squeue", "scontrol", "sacct"):
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setenv("ULTRAMEM_SITE", os.devnull)
    return folder


def submit(tmp_path: Path, *options: str) -> tuple[int, str, BaseException | None]:
    command = ["submit", str(write_tiny_config(tmp_path)), "--tasks-per-node", "2", "--run-dir", str(tmp_path / "run")]
    result = CliRunner().invoke(app, [*command, *options])
    return result.exit_code, result.output, result.exception


def test_config_plan_and_code_are_fixed_in_the_run_folder(sbatch: Path, tmp_path: Path) -> None:
    status, output, _ = submit(tmp_path, "training.steps=9", "--copy-code", "--json")
    assert (status, json.loads(output)["jobs"]) == (0, ["1"])
    folder = JobFolder(tmp_path / "run")
    assert "steps: 9" in folder.config.read_text()
    assert json.loads((folder.run_dir / "plan.json").read_text())["world_size"] == 2
    assert json.loads(folder.version.read_text())["versions"]["ultramem"]
    assert (folder.code / "ultramem_launch" / "slurm" / "pretrain.sbatch").is_file()
    assert f"export PYTHONPATH={folder.code}$" in folder.script.read_text()
    assert folder.job_ids() == ["1"]
    assert (sbatch / "calls").read_text() == f"--parsable {folder.script}\n"


def test_a_chain_waits_for_its_links(sbatch: Path, tmp_path: Path) -> None:
    assert submit(tmp_path, "--chain", "3")[0] == 0
    calls = (sbatch / "calls").read_text().splitlines()
    assert ["afterany" in call for call in calls] == [False, True, True]
    assert "--dependency=afterany:2" in calls[2]
    assert JobFolder(tmp_path / "run").job_ids() == ["1", "2", "3"]
    assert "#SBATCH --no-requeue\n" in (tmp_path / "run" / "job" / "pretrain.sbatch").read_text()


def test_an_array_has_a_run_folder_for_each_task(sbatch: Path, tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text("grid: {training.seed: [1, 2]}")
    assert submit(tmp_path, "--array", str(tmp_path / "sweep.yaml"))[0] == 0
    for seed in (1, 2):
        folder = JobFolder(tmp_path / "run" / f"seed-{seed}")
        assert f"seed: {seed}" in folder.config.read_text()
        assert folder.job_ids() == [f"1_{seed - 1}"]
    assert "#SBATCH --array=0-1\n" in (tmp_path / "run" / "job" / "pretrain.sbatch").read_text()


def test_a_dry_run_writes_nothing(sbatch: Path, tmp_path: Path) -> None:
    status, output, _ = submit(tmp_path, "--dry-run")
    assert (status, output.startswith("#!/bin/bash\n#SBATCH --job-name=tiny\n")) == (0, True)
    assert not (tmp_path / "run").exists()
    assert not (sbatch / "calls").exists()


def test_what_does_not_fit_is_refused_before_anything_is_written(sbatch: Path, tmp_path: Path) -> None:
    for options, message in [
        (["--nodes", "3"], "training.global_batch_size = 4 must be a multiple"),
        (["training.stepz=3"], "training.steps"),
        (["--chain", "2", "--array", "x.yaml"], "exclude each other"),
        (["--gpus-per-node", "4"], "contradicts --gpus-per-node 4"),
    ]:
        status, _, error = submit(tmp_path, *options)
        assert status == 1 and message in str(error)
    assert not (tmp_path / "run").exists()
    assert not (sbatch / "calls").exists()


def test_two_jobs_do_not_share_a_run_folder(sbatch: Path, tmp_path: Path) -> None:
    assert submit(tmp_path)[0] == 0
    (sbatch / "queue").write_text("RUNNING|None|n1|10:00\n")
    _, _, error = submit(tmp_path)
    assert "job 1 of this run is RUNNING, and two jobs would write into one folder" in str(error)
    (sbatch / "queue").unlink()
    assert submit(tmp_path)[0] == 0


def test_a_queue_that_cannot_be_asked_is_no_empty_one(sbatch: Path, tmp_path: Path) -> None:
    assert submit(tmp_path)[0] == 0
    (sbatch / "squeue").write_text(
        "#!/bin/sh\necho 'slurm_load_jobs error: Unable to contact controller' >&2; exit 1\n"
    )
    state = find_state("1")
    assert (state.state, is_active(state.state)) == ("UNREACHABLE", True)
    _, _, error = submit(tmp_path)
    assert "job 1 of this run is UNREACHABLE (slurm_load_jobs error: Unable to contact controller)" in str(error)
    (sbatch / "squeue").write_text("#!/bin/sh\necho 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1\n")
    assert find_state("1").state == "UNKNOWN"


def test_a_job_that_cannot_be_requeued_is_told_what_else_to_do(sbatch: Path) -> None:
    words = "Requested operation is presently disabled for job 7"
    (sbatch / "scontrol").write_text(f"#!/bin/sh\necho '{words}' >&2; exit 1\n")
    with pytest.raises(LaunchError, match=r"job 7 cannot be put back .* with --chain, .* `ultramem cancel` ends it"):
        requeue("7")
    (sbatch / "scontrol").write_text("#!/bin/sh\necho 'Invalid job id specified' >&2; exit 1\n")
    with pytest.raises(LaunchError, match="scontrol requeue 7 failed: Invalid job id"):
        requeue("7")


def test_without_slurm_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("ULTRAMEM_SITE", os.devnull)
    _, _, error = submit(tmp_path)
    assert isinstance(error, LaunchError)
    assert "sbatch is not on PATH" in str(error) and "slurm/dev-cluster up" in str(error)
