"""The layers of this checkout of the repository and of another one, in processes of their own that take turns."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

SAME_SIZE = 1e-4
"""Difference of the norms of outputs and gradients, relative, up to which two checkouts compute the same."""
HERE = Path(__file__).resolve().parents[2]


class OtherProcess:
    """One checkout's layer."""

    def __init__(self, checkout: Path, settings: dict[str, Any], environment: dict[str, str]) -> None:
        self.checkout = checkout
        command = [sys.executable, str(Path(__file__).with_name("one_layer.py")), str(checkout), json.dumps(settings)]
        environment = {name: value for name, value in environment.items() if name != "PYTHONPATH"}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=checkout
        )

    def one_pass(self) -> dict[str, float]:
        """Ask for one, and wait."""
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write("\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended: the empty answer says so
        answer = self.process.stdout.readline()
        if not answer:
            sys.exit(f"the layer of {self.checkout} ended with status {self.process.wait()}; its own words are above")
        return json.loads(answer)

    def end(self) -> None:
        """Let it go."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def passes_in_turns(
    other: Path, settings: dict[str, Any], environment: dict[str, str], untimed: int, repeats: int
) -> tuple[dict[str, list[list[float]]], list[str]]:
    """Seconds of forward and backward of this checkout and of ``other``, and where they compute different things.

    A turn is one pass untimed and one timed: at first the threads of the other process still spin, and its data are in
    the caches, whereas in training the blocks around a layer are of the same process.
    """
    layers = {
        "ultramem_megatron": OtherProcess(HERE, settings, environment),
        f"checkout {other.name}": OtherProcess(other, settings, environment),
    }
    seconds: dict[str, list[list[float]]] = {name: [] for name in layers}
    for repeat in range(untimed + repeats):
        answers = {}
        for name, layer in layers.items():
            layer.one_pass()
            answers[name] = layer.one_pass()
        if repeat >= untimed:
            for name, answer in answers.items():
                seconds[name].append([answer["forward"], answer["backward"]])
    for layer in layers.values():
        layer.end()
    ours, theirs = answers.values()
    problems = [
        f"{name} has the norm {ours[name]:.6g}, that of {other} {theirs[name]:.6g}"
        for name in ("output", "x_grad")
        if not abs(ours[name] - theirs[name]) <= SAME_SIZE * abs(theirs[name])
    ]
    return seconds, problems
