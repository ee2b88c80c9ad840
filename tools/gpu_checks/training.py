"""The section ``training``: the quick-start model, saved and resumed."""

import json
import math
from collections.abc import Sequence
from typing import Any

from gpu_checks.program import REPOSITORY, Finding, Task, run_program
from ultramem_launch import exit_codes
from ultramem_megatron.units import format_bytes

RESUMED_STEPS = 10
RECIPE_STEPS = 240  # of the recipe's schedule, which stays as it is
ON_CPU = ["model.seq_length=32", "training.global_batch_size=8", "training.micro_batch_size=8"]
LOSS_NOISE = 0.2  # nats between means over a few batches of one model
DATA = REPOSITORY / "data_cache" / "quickstart"


def look_at_training(task: Task) -> Finding:
    """The quick-start run up to a save, and some steps more from it in another process."""
    real = (DATA / "tokenizer.json").is_file()
    # a CPU, on which the program itself is tried, takes seconds for such steps, and more without instructions for bf16
    precision, sizes = ("bf16", []) if task.device == "cuda" else ("fp32", ON_CPU)
    settings = [
        "quickstart",
        *(f"training.steps={RECIPE_STEPS}", f"training.precision={precision}"),
        *("training.eval_interval=0", "checkpoint.interval=0", "memory.parallel_size=1"),
        f"data.folder={DATA}" if real else "data.synthetic=true",
        *sizes,
    ]
    first, second = (train_until(task, settings, last_step) for last_step in (task.steps, task.steps + RESUMED_STEPS))
    facts = {
        "data": "data_cache/quickstart" if real else "synthetic",
        "precision": precision,
        "tokens_per_second": first["tokens_per_second"],
        "timed_steps": first["timed_steps"],
        "peak_gpu_bytes_allocated": first["peak_gpu_bytes_allocated"],
        "peak_gpu_bytes_reserved": first["peak_gpu_bytes_reserved"],
        "losses": first["losses"],
        "losses_after_resume": second["losses"],
    }
    problems = [*problems_of_run(first, 0, task.steps), *problems_of_run(second, task.steps, RESUMED_STEPS)]
    problems = problems or problems_of_losses(first["losses"], second["losses"])
    return Finding(facts, problems, training_summary(facts, task.steps))


def train_until(task: Task, settings: list[str], last_step: int) -> dict[str, Any]:
    """A process that trains up to ``last_step``, from where the one before it saved."""
    out = task.folder / f"until-{last_step}.json"
    tool = REPOSITORY / "tools" / "bench_training"
    stop = f"training.stop_after={last_step}"
    run_program(task, tool, *settings, stop, "--run-dir", task.folder / "run", "--out", out)
    report: dict[str, Any] = json.loads(out.read_text())
    return report


def problems_of_run(run: dict[str, Any], saved_step: int, count: int) -> list[str]:
    """Whether the run took the right steps, ended as one that saved, and met no infinity or NaN."""
    problems = []
    if run["exit_status"] != exit_codes.STOPPED:
        problems.append(f"the run ended with {run['exit_status']}, not {exit_codes.STOPPED} (saved and stopped)")
    if run["steps"] != list(range(saved_step + 1, saved_step + count + 1)):
        problems.append(f"the run was to take steps {saved_step + 1} to {saved_step + count}, it took {run['steps']}")
    if None in run["losses"]:
        problems.append(f"the loss of step {saved_step + 1 + run['losses'].index(None)} is not finite")
    return problems


def problems_of_losses(losses: list[float], resumed: list[float]) -> list[str]:
    """The loss must fall, and go on from where it was saved."""
    few = min(10, len(losses) // 3)
    begin, end, after = mean(losses[:few]), mean(losses[-few:]), mean(resumed)
    problems = []
    if not end < begin:
        problems.append(f"the loss did not fall: mean {begin:.3f} over the first {few} steps, {end:.3f} over the last")
    if not after < end + LOSS_NOISE:
        problems.append(f"the loss jumped at the resume: mean {end:.3f} before, {after:.3f} after")
    return problems


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def training_summary(facts: dict[str, Any], steps: int) -> str:
    speed, peak = facts["tokens_per_second"], facts["peak_gpu_bytes_allocated"]
    parts = [f"{facts['data']}, {steps} steps"]
    parts += [f"{speed:,.0f} tokens/s" if speed else "too few steps for a speed"]
    parts += [f"peak {format_bytes(peak)}"] if peak else []
    losses = [loss for loss in (*facts["losses"], *facts["losses_after_resume"]) if loss is not None]
    parts += [f"loss {losses[0]:.3f} to {losses[-1]:.3f} ({RESUMED_STEPS} steps after the resume)"] if losses else []
    return ", ".join(parts)
