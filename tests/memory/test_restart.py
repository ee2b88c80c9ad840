"""The same rows are picked whatever LAPACK's signs, wherever the core has been, and after a restart."""

# Letters: T tokens, K picks.

import os
import signal
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.parallel.partition.base import Picks
from ultramem_megatron.testing.distributed import run_distributed
from ultramem_megatron.testing.tiny import tiny_config

Layers = Any  # the fixture's class lives in conftest.py
STEPS = 8
V2 = {"variant": "ultramem_v2", "pre_value_dim": 6}
KINDS = [pytest.param({"variant": "pkm"}, id="pkm"), pytest.param({}, id="ultramem"), pytest.param(V2, id="v2")]


def learn(layer: Any, hidden: int, steps: range, prepare: Callable[[], None] = lambda: None) -> list[Tensor]:
    """Plain gradient descent on a fixed target; the rows [T, K] picked at each step."""
    picked = []
    for step in steps:
        prepare()
        layer.begin_step()
        x, target = torch.randn(2, 5, 2, hidden, generator=torch.Generator().manual_seed(step))
        output = layer(x)
        with torch.no_grad():
            picked.append(layer.retrieve(x).rows_TK.clone())
        layer.zero_grad()
        (output - target).square().mean().backward()
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter -= 0.5 * parameter.grad
    return picked


def turn_signs(svd: Any, pattern: int) -> Any:
    """An SVD that negates the pairs whose number has a 1 in ``pattern``, in odd calls only, so that they alternate."""
    calls = 0

    def turned(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        nonlocal calls
        calls += 1
        left, values, right = svd(matrix)
        pairs = torch.arange(values.numel()).view(values.shape)
        sign = torch.where((pattern >> (pairs % 8) & 1).bool() & bool(calls % 2), -1.0, 1.0)
        return left * sign.unsqueeze(-2), values, right * sign.unsqueeze(-1)

    return turned


@pytest.mark.parametrize("kind", [{}, V2], ids=["ultramem", "v2"])
def test_picks_do_not_depend_on_lapacks_signs(layers: Layers, kind: dict[str, object]) -> None:
    """The singular vectors come back negated, head by head, now and then: step after step the same rows are picked,
    and the weights stay equal to the bit."""
    config = layers.config(**kind)

    def run(pattern: int) -> tuple[list[Tensor], list[Tensor]]:
        torch.linalg.svd = turn_signs(torch.linalg.svd, pattern)  # a fork: no other test sees it
        layer = layers.build(config)
        picked = learn(layer, config.model.hidden, range(STEPS))
        return picked, [parameter.detach().clone() for parameter in layer.parameters()]

    ((rows, weights),) = run_distributed(1, run, 0)
    assert len({tuple(step.flatten().tolist()) for step in rows}) == STEPS, "the picks move"
    for pattern in (0b11111111, 0b01010101, 0b00011011):
        ((other_rows, other_weights),) = run_distributed(1, run, pattern)
        assert all(torch.equal(a, b) for a, b in zip(rows, other_rows, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(weights, other_weights, strict=True))


def test_the_sign_decides_the_picks(layers: Layers) -> None:
    """Why it must be kept: the opposite pair picks almost no row of the first."""
    config = layers.config(keys_per_side=32)

    def both() -> tuple[Tensor, Tensor]:
        layer = layers.build(config)
        x = torch.randn(8, 2, config.model.hidden)
        with torch.no_grad():
            first = layer.retrieve(x).rows_TK
            mirror(layer)
            return first, layer.retrieve(x).rows_TK

    ((first, second),) = run_distributed(1, both)
    shared = (first.unsqueeze(2) == second.unsqueeze(1)).any(dim=2).float().mean()
    assert shared < 0.1


def mirror(layer: Any) -> None:
    """Leave the pair of each head as continuity may have left it: with the sign that a start does not choose."""
    if hasattr(layer.retrieval, "core"):
        layer.retrieval.core.left.neg_()
        layer.retrieval.core.right.neg_()


def test_a_core_in_the_mirror_and_back_picks_what_it_picked(layers: Layers) -> None:
    """Half a turn of a rank-2 core: the same core, the opposite picks. The way back: the first picks."""
    config = layers.config(keys_per_side=32)

    def walk() -> tuple[Tensor, Tensor, Tensor]:
        layer = layers.build(config)
        core, start = layer.retrieval.core, layer.retrieval.core.weight.detach().clone()
        x = torch.randn(8, 2, config.model.hidden)

        def turn(steps: range) -> Tensor:
            for step in steps:
                angle = torch.tensor(torch.pi * step / 40)
                rotation = torch.tensor([[angle.cos(), -angle.sin()], [angle.sin(), angle.cos()]])
                with torch.no_grad():
                    core.weight.copy_(rotation @ start @ rotation.T)
                layer.begin_step()
            with torch.no_grad():
                return layer.retrieve(x).rows_TK.sort(dim=1).values

        return turn(range(1)), turn(range(1, 41)), turn(range(39, -1, -1))

    ((first, mirrored, back),) = run_distributed(1, walk)
    assert torch.equal(back, first)
    assert (mirrored != first).any(dim=1).all(), "each token picks otherwise"


@pytest.mark.parametrize("kind", KINDS)
def test_a_fresh_layer_with_the_state_goes_on_as_the_old_one(layers: Layers, kind: dict[str, object]) -> None:
    """From a state whose pairs have the sign that a start would not choose."""
    config = layers.config(**kind)

    def run(interrupted: bool) -> list[Tensor]:
        layer = layers.build(config)
        mirror(layer)
        picked = learn(layer, config.model.hidden, range(4))
        if interrupted:
            state = {name: value.clone() for name, value in layer.state_dict().items()}
            layer = layers.build(config, seed=1)
            layer.load_state_dict(state)
        return picked + learn(layer, config.model.hidden, range(4, STEPS))

    (whole,), (resumed,) = run_distributed(1, run, False), run_distributed(1, run, True)
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))


def test_without_the_pair_it_would_not(layers: Layers) -> None:
    """The test above means something: a fresh core chooses its sign anew."""
    config = layers.config()

    def run(forgets: bool) -> list[Tensor]:
        layer = layers.build(config)
        mirror(layer)
        picked = learn(layer, config.model.hidden, range(2))
        if forgets:
            layer.retrieval.core.left.zero_()
        return picked + learn(layer, config.model.hidden, range(2, 4))

    (kept,), (forgotten,) = run_distributed(1, run, False), run_distributed(1, run, True)
    assert [torch.equal(a, b) for a, b in zip(kept, forgotten, strict=True)] == [True, True, False, False]


# --- A real run -------------------------------------------------------------------------------------------------------


def train(config: RunConfig, run_dir: Path, stop_after: int = 0) -> dict[int, list[Tensor]]:
    """``pretrain`` on this process; the rows that were picked in each step. The pairs start mirrored."""
    from ultramem_megatron.planning.choose import choose_plan
    from ultramem_megatron.planning.cluster import local_cluster
    from ultramem_megatron.training import loop
    from ultramem_megatron.training.pretrain import pretrain

    picked: dict[int, list[Tensor]] = {}
    step = loop.train_step

    def watched_step(state: Any, micro_batches: Any) -> Any:
        number, (layer,) = state.step + 1, state.chunks[0].memory_layers
        if number == 1:
            layer.begin_step()
            mirror(layer)
        retrieve = layer.retrieve

        def watched_retrieve(x_sbD: Tensor) -> Picks:
            picks = retrieve(x_sbD)
            picked.setdefault(number, []).append(picks.rows_TK.clone())
            return picks

        with mock.patch.object(layer, "retrieve", watched_retrieve):
            result = step(state, micro_batches)
        if number == stop_after:
            os.kill(os.getpid(), signal.SIGTERM)
        return result

    loop.train_step = watched_step  # a fork: no other test sees it
    pretrain(config, choose_plan(config, local_cluster(1)), run_dir, torch.device("cpu"))
    return picked


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="forked ranks need a machine without CUDA")
@pytest.mark.parametrize("variant", ["ultramem", "ultramem_v2"])
def test_a_run_resumed_in_a_fresh_process_picks_the_rows_of_one_that_never_stopped(
    megatron: ModuleType, tmp_path: Path, variant: str
) -> None:
    for module in ("ultramem_megatron.training.pretrain", "torch.utils.tensorboard"):
        import_module(module)  # once, before the forks
    pre_values = ("memory.pre_value_dim=8",) if variant == "ultramem_v2" else ()
    config = tiny_config(f"memory.variant={variant}", "training.steps=4", *pre_values)
    (whole,) = run_distributed(1, train, config, tmp_path / "whole")
    (first,) = run_distributed(1, train, config, tmp_path / "stopped", 2)
    (second,) = run_distributed(1, train, config, tmp_path / "stopped")
    assert (sorted(whole), sorted(first), sorted(second)) == ([1, 2, 3, 4], [1, 2], [3, 4])
    for number, rows in {**first, **second}.items():
        assert len(rows) == 2, "micro-batches"
        assert all(torch.equal(a, b) for a, b in zip(rows, whole[number], strict=True)), f"step {number}"
