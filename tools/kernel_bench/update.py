"""The step of a value table on a CPU: this project's beside torch's AdamW and the copy that would follow it."""

import argparse
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kernel_bench.timing import processor
from ultramem_kernels.table_update import AdamW, update_table

WIDTH = 128
"""Of a row; rows are touched as a whole."""
TOUCHED = (0.5, 0.1, 0.01)
STEP, SETTINGS = 10, AdamW(learning_rate=1e-3, beta1=0.9, beta2=0.95, epsilon=1e-8, weight_decay=0.1)
ALLOWED_ERROR = 1e-3
"""Of a weight near 1: fp32 rounds it by 6e-8, of a step of 1e-3."""


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Dense in fp32 and bf16, and touched rows; contenders in random turns, by CPU time of the process."""
    torch.set_num_threads(arguments.threads)
    rows = max(1, arguments.update // WIDTH)
    rounds = {f"dense, {dtype} weights": contenders_of(rows, dtype, 1.0) for dtype in (torch.float32, torch.bfloat16)}
    rounds |= {f"{share:.0%} of the rows touched": contenders_of(rows, torch.bfloat16, share) for share in TOUCHED}
    lines = []
    for what, contenders in rounds.items():
        seconds = time_in_turns(contenders, arguments.repeats)
        ours = seconds["ultramem"]
        lines += [{"what": what, "who": who, "cpu_seconds": s, "times_ours": s / ours} for who, s in seconds.items()]
    error = error_of_step()
    return {
        "cpu": processor(),
        "torch": torch.__version__,
        "threads": arguments.threads,
        "elements": rows * WIDTH,
        "repeats": arguments.repeats,
        "error": error,
        "lines": lines,
        "problems": [] if error <= ALLOWED_ERROR else [f"error {error:.1e} against torch's AdamW"],
        "bars": {
            "label": "CPU time / ours",
            "names": [f"{line['what']}: {line['who']}" for line in lines],
            "values": [line["times_ours"] for line in lines],
        },
    }


def contenders_of(rows: int, dtype: torch.dtype, share: float) -> dict[str, Callable[[], object]]:
    """By name: a step that leaves master, moments and the model's weights updated."""
    master, mean, square, grad = (torch.rand(rows, WIDTH) for _ in range(4))
    grad *= torch.rand(rows, 1) < share
    weight = master if dtype is torch.float32 else master.to(dtype)
    touched_only = share < 1

    def ours() -> None:
        state = (weight, master, mean, square, grad)
        update_table(*state, STEP, SETTINGS, touched_only=touched_only, clear_grad=False)

    def step_and_copy(adam: torch.optim.Optimizer) -> Callable[[], None]:
        def step() -> None:
            adam.step()
            if weight is not master:
                weight.copy_(master)

        return step

    peers = {
        name: step_and_copy(adam_of(master, grad, **{name: True})) for name in (("fused",) if touched_only else KINDS)
    }
    return {"ultramem": ours} | {f"torch AdamW {name}, dense": step for name, step in peers.items()}


KINDS = ("fused", "foreach")


def adam_of(master: Tensor, grad: Tensor, **kind: bool) -> torch.optim.Optimizer:
    """torch's, with the same rates."""
    parameter = torch.nn.Parameter(master)
    parameter.grad = grad
    betas = (SETTINGS.beta1, SETTINGS.beta2)
    rates = {"lr": SETTINGS.learning_rate, "betas": betas, "weight_decay": SETTINGS.weight_decay}
    return torch.optim.AdamW([parameter], **rates, **kind)


def time_in_turns(contenders: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median CPU seconds of each, so that other processes of the machine count as little as they can."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for contender in contenders.values():
        contender()
    for _ in range(repeats):
        for name in random.sample(list(contenders), len(contenders)):
            begin = time.process_time()
            contenders[name]()
            seconds[name].append(time.process_time() - begin)
    return {name: statistics.median(times) for name, times in seconds.items()}


def error_of_step() -> float:
    """Largest difference of a first step from torch's AdamW, in learning rates."""
    master, grad = torch.randn(1000), torch.randn(1000)
    found = master.clone()
    update_table(found, found, torch.zeros(1000), torch.zeros(1000), grad, 1, SETTINGS, clear_grad=False)
    adam_of(master, grad, foreach=True).step()
    return float((found - master).abs().max()) / SETTINGS.learning_rate


def table(report: dict[str, Any]) -> str:
    """Markdown."""
    lines = [
        f"{report['cpu']}, torch {report['torch']}, {report['threads']} threads; {report['elements']:,} elements, "
        f"medians of {report['repeats']}.",
        "",
        "| step | who | CPU ms | times ours |",
        "| --- | --- | ---: | ---: |",
    ]
    for line in report["lines"]:
        milliseconds = f"{1e3 * line['cpu_seconds']:.2f}"
        lines.append(f"| {line['what']} | {line['who']} | {milliseconds} | {line['times_ours']:.2f} |")
    return "\n".join([*lines, *(f"WRONG: {problem}" for problem in report["problems"])])
