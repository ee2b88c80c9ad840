"""The sections, each a program or a few, with their time limits."""

import json
import statistics
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

from gpu_checks.program import REPOSITORY, Finding, Task, run_program
from gpu_checks.training import look_at_training

LAYER_SIZES = ("tiny", "ultramem-151m-x12")


def look_at_tests(task: Task) -> Finding:
    """Every test marked ``gpu``; at least one must have run."""
    results = task.folder / "tests.xml"
    command = ["-m", "pytest", "-m", "gpu", "tests", "-p", "no:cacheprovider", f"--junitxml={results}"]
    run_program(task, *command, accept=(0, 1))
    cases = list(ElementTree.parse(results).getroot().iter("testcase"))
    failed = [case_name(case) for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = [case_name(case) for case in cases if case.find("skipped") is not None]
    passed = len(cases) - len(failed) - len(skipped)
    problems = [f"{name} failed" for name in failed]
    if not passed:
        problems.append(f"no test marked gpu passed ({len(skipped)} skipped)")
    facts = {"passed": passed, "failed": failed, "skipped": skipped}
    return Finding(facts, problems, f"{passed} passed, {len(failed)} failed, {len(skipped)} skipped")


def case_name(case: ElementTree.Element) -> str:
    return f"{case.get('classname')}::{case.get('name')}"


def look_at_layer(task: Task) -> Finding:
    """``tools/bench_layer`` for each size."""
    out = task.folder / "layer.json"
    sizes = [word for size in task.layer_sizes for word in ("--size", size)]
    run_program(task, REPOSITORY / "tools" / "bench_layer", *sizes, "--out", out, accept=(0, 1))
    facts = json.loads(out.read_text())
    problems = [
        f"{layer['size']}, {layer['precision']}: {problem}"
        for layer in facts["layers"]
        for problem in layer["problems"]
    ]
    if not facts["layers"]:
        problems.append("no layer was measured")
    left_out = [f"{one['size']} left out, {one['reason']}" for one in facts["left_out"]]
    copy = f"copy {facts['copy_bytes_per_second'] / 1e9:,.0f} GB/s"
    return Finding(facts, problems, "; ".join([f"{len(facts['layers'])} measured, {copy}", *left_out]))


def look_at_kernels(task: Task) -> Finding:
    """``tools/bench_kernels`` for one model; its other shapes are a run of their own."""
    out = task.folder / "kernels.json"
    shape = ("151m-x12", "8192") if task.device == "cuda" else ("tiny", "16")
    words = ["--model", shape[0], "--tokens", shape[1], "--draw", "uniform", "--draw", "zipf", "--json", out]
    run_program(task, REPOSITORY / "tools" / "bench_kernels", *words, accept=(0, 1))
    facts = json.loads(out.read_text())
    shares = [
        f"{line['phase']} {line['copy_share']:.2f}"
        for line in facts["lines"]
        if line["who"] == "ultramem" and line["draw"] in ("uniform", "dense") and line["bytes"]
    ]
    return Finding(facts, facts["problems"], f"{shape[0]}, shares of the copy rate: {', '.join(shares)}")


def look_at_step(task: Task) -> Finding:
    """``tools/profile_step``: what part of a training step the memory layers take, with overlap and without."""
    out = task.folder / "output"
    if task.device == "cuda":
        model = ["ultramem-151m-x12", "training.precision=bf16", "training.global_batch_size=16"]
        settings = [*model, "training.micro_batch_size=8", "--steps", "10"]
    else:
        settings = ["parity", "--steps", "1"]
    one_rank = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
    tool = REPOSITORY / "tools" / "profile_step"
    words = [*one_rank, tool, *settings, "data.synthetic=true", "memory.parallel_size=1", "--dense", "--json"]
    run_program(task, *words)
    facts = last_json(out.read_text())
    with_overlap, without = facts["memory_share"], facts["memory_share_without_overlap"]
    milliseconds = 1e3 * statistics.median(facts["step_seconds"])
    summary = f"{settings[0]}, {milliseconds:.1f} ms: memory layers {with_overlap:.0%}, {without:.0%} without overlap"
    return Finding(facts, [], summary)


def last_json(output: str) -> dict[str, Any]:
    """What the program printed after the words of its libraries."""
    facts: dict[str, Any] = json.loads(output[output.index("{\n") :])
    return facts


SECTIONS: dict[str, tuple[Callable[[Task], Finding], float]] = {
    "tests": (look_at_tests, 150.0),
    "training": (look_at_training, 120.0),
    "layer": (look_at_layer, 100.0),
    "kernels": (look_at_kernels, 90.0),
    "step": (look_at_step, 80.0),
}
"""What each does, and its time limit in seconds: nine minutes for all."""


def layer_table(facts: dict[str, Any]) -> str:
    """A line a layer; "gather" is the time in which the device gathers the rows of a pass and does nothing else."""
    if not facts.get("layers"):
        return ""
    lines = [
        f"\n{'layer':20s}{'tokens':>8s}{'':>6s}{'forward':>11s}{'backward':>11s}{'gather':>11s}{'gather rate':>14s}"
        f"{'picks':>8s}{'lookup err':>12s}{'gradient err':>14s}"
    ]
    for layer in facts["layers"]:
        rate, errors = layer["gather_bytes_per_second"], layer["errors"]
        times = (layer["forward_seconds"], layer["backward_seconds"], 2 * layer["row_bytes_read"] / rate)
        lines.append(
            f"{layer['size']:20s}{layer['tokens']:8d}{layer['precision']:>6s}"
            + "".join(f"{1000 * seconds:8.3f} ms" for seconds in times)
            + f"{rate / 1e9:9,.0f} GB/s{errors['picks_agreeing']:8.2%}{errors['lookup']:12.1e}"
            f"{errors['table_gradient']:14.1e}"
        )
    return "\n".join(lines)
