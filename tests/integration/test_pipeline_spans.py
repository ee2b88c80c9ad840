"""Spans that cross the boundaries between pipeline stages: one curve, the boundaries that pay, and checkpoints."""

import dataclasses
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.distributed as dist

from ultramem_launch.configs import load_config
from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.planning.choose import choose_plan
from ultramem_megatron.planning.cluster import local_cluster
from ultramem_megatron.testing.budget import budget
from ultramem_megatron.testing.distributed import run_distributed
from ultramem_megatron.testing.layouts import Curve, Layout
from ultramem_megatron.testing.tolerances import LOSS_CURVE_RELATIVE as RELATIVE

from .conftest import HASTE, assert_same_curve, train

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="forked ranks need a machine without CUDA")

STEPS, SAVE_AFTER = budget(3, 6), budget(1, 3)
SEED = budget(14, 7)
"""In these steps and at all spans below, the last slot that is picked leads the next by 8e-6 at least, ten times what
layouts differ by: seed 1234 has two slots with the same score to the last bit, of which each layout picks another."""

PP2, PP4 = ("parallelism.pipeline=2",), ("parallelism.pipeline=4",)
INTERLEAVED = (*PP2, "parallelism.virtual_pipeline=2")
SEQUENCE = ("parallelism.tensor=2", "parallelism.sequence=true")
NUMBER_WISE = ("memory.parallel_size=2", "memory.partition=number_wise")
DIMENSION_WISE = ("memory.parallel_size=2", "memory.partition=dimension_wise")

ALONE = Layout("1 process", 1)
CASES = [
    # a stage has two blocks in PP2 and one in the others: 1:4 crosses every boundary, 2:3 the middle one
    ("2:3", Layout("PP2", 2, PP2)),
    ("2:3", Layout("TP2 x PP2", 4, ("parallelism.tensor=2", *PP2))),
    ("2:3", Layout("TP2+SP x PP2", 4, (*SEQUENCE, *PP2))),
    ("2:3", Layout("PP2 x DP2, mem 2 number-wise", 4, (*PP2, *NUMBER_WISE))),
    ("1:4", Layout("PP2", 2, PP2)),
    ("1:4", Layout("PP4", 4, PP4)),
    ("1:4", Layout("PP2 x 2 chunks", 2, INTERLEAVED)),
    ("1:4", Layout("PP2 x 2 chunks x DP2, mem 2 dimension-wise", 4, (*INTERLEAVED, *DIMENSION_WISE))),
    ("1:1/2:4", Layout("PP4", 4, PP4)),
    ("1:2/3:4", Layout("PP4", 4, PP4)),
    ("1:2/3:4", Layout("PP2 x 2 chunks", 2, INTERLEAVED)),
    ("1:3/4:4", Layout("TP2+SP x PP2 x 2 chunks", 4, (*SEQUENCE, *INTERLEAVED))),
]


def parity(spans: str, *overrides: str) -> RunConfig:
    """Four blocks; before a release eight micro-batches, more than a pipeline of four needs to fill."""
    size = budget(2, 1)
    training = (f"training.stop_after={STEPS}", f"training.seed={SEED}", f"training.micro_batch_size={size}")
    return load_config("parity", [*HASTE, f"memory.spans={spans}", *training, *overrides])


@pytest.fixture(scope="module")
def alone(megatron: ModuleType) -> dict[str, Curve]:
    """The curves of one process, by spans."""
    return {spans: train(parity(spans), ALONE) for spans in dict.fromkeys(spans for spans, _ in CASES)}


@pytest.mark.slow
@pytest.mark.parametrize(("spans", "layout"), CASES, ids=[f"{spans} in {layout.name}" for spans, layout in CASES])
def test_the_curve_is_that_of_one_process(spans: str, layout: Layout, alone: dict[str, Curve]) -> None:
    expected = alone[spans]
    assert_same_curve(train(parity(spans), layout), expected, STEPS)
    assert expected.losses[-1] < expected.losses[0]


@pytest.mark.slow
def test_where_a_span_ends_makes_a_difference(alone: dict[str, Curve]) -> None:
    """Else equal curves would say nothing."""
    curves = [curve.losses for curve in alone.values()]
    for i, curve in enumerate(curves):
        for other in curves[:i]:
            assert curve != pytest.approx(other, rel=10 * RELATIVE)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("saver", "loaders"),
    [
        (Layout("PP2", 2, PP2), [ALONE, Layout("PP4", 4, PP4)]),
        (Layout("PP2 x 2 chunks", 2, INTERLEAVED), [ALONE]),
        (ALONE, [Layout("PP2 x DP2", 4, (*PP2, *NUMBER_WISE))]),
    ],
    ids=lambda layouts: layouts.name if isinstance(layouts, Layout) else "",
)
def test_a_checkpoint_goes_on_under_another_layout(
    saver: Layout, loaders: list[Layout], alone: dict[str, Curve], tmp_path: Path
) -> None:
    config = parity("2:3")
    early = dataclasses.replace(config, training=dataclasses.replace(config.training, stop_after=SAVE_AFTER))
    train(early, saver, save=tmp_path)
    for loader in loaders:
        assert_same_curve(train(config, loader, load=tmp_path), alone["2:3"], STEPS, SAVE_AFTER)


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [PP2, INTERLEAVED], ids=["PP2", "PP2 x 2 chunks"])
def test_bf16(megatron: ModuleType, overrides: tuple[str, ...]) -> None:
    config = parity("1:4", "training.precision=bf16")
    expected = train(config, ALONE).losses
    found = train(config, Layout("split", 2, overrides)).losses
    # the hidden states that travel are bf16 in either case, so only the order of sums differs
    assert found == pytest.approx(expected, rel=1e-2)
    assert found[-1] < found[0]


Traffic = dict[str, dict[int, int]]
"""Bytes to other pipeline ranks in one step, ``forward`` and ``backward``, by the rank that they go to."""


def sent_bytes(config: RunConfig) -> Traffic:
    """What this rank sends in one training step, and in one pass without gradients, as the schedule hands it over."""
    from megatron.core.pipeline_parallel import p2p_communication

    from ultramem_megatron.data.dataset import open_training_data
    from ultramem_megatron.training.forward_backward import run_micro_batches
    from ultramem_megatron.training.setup import build_run_groups, build_train_state

    plan = choose_plan(config, local_cluster(dist.get_world_size()))
    state = build_train_state(config, plan, build_run_groups(config, plan, torch.device("cpu")))
    batches = state.batches(open_training_data(config))
    sent: Traffic = {"forward": {}, "backward": {}, "evaluation": {}}
    send = p2p_communication._p2p_ops
    evaluating = False

    def counting(*, tensor_send_prev: torch.Tensor | None, tensor_send_next: torch.Tensor | None, **rest: object):
        for which, tensor, peer in (
            ("evaluation" if evaluating else "forward", tensor_send_next, rest["next_pipeline_rank"]),
            ("backward", tensor_send_prev, rest["prev_pipeline_rank"]),
        ):
            if tensor is not None:
                sent[which][peer] = sent[which].get(peer, 0) + tensor.numel() * tensor.element_size()
        return send(tensor_send_prev=tensor_send_prev, tensor_send_next=tensor_send_next, **rest)

    p2p_communication._p2p_ops = counting
    run_micro_batches(state, next(batches), forward_only=False)
    evaluating = True
    with torch.no_grad():
        run_micro_batches(state, next(batches), forward_only=True)
    p2p_communication._p2p_ops = send
    return sent


@pytest.mark.parametrize(
    ("spans", "layout", "crossings"),
    [
        # messages of a rank to the next one and back, in hidden states: 1, or 2 with a result behind it
        ("1:1/3:3", Layout("PP4", 4, PP4), [(1, 0), (1, 1), (1, 1), (0, 1)]),
        ("2:3", Layout("PP4", 4, PP4), [(1, 0), (2, 1), (1, 2), (0, 1)]),
        ("1:2/3:4", Layout("PP4", 4, PP4), [(2, 0), (1, 2), (2, 1), (0, 2)]),
        # rank 0 sends from blocks 1 and 3, rank 1 from block 2
        ("2:3", Layout("PP2 x 2 chunks", 2, INTERLEAVED), [(1 + 1, 2), (2, 1 + 1)]),
        ("1:2", Layout("PP2 x 2 chunks", 2, INTERLEAVED), [(2 + 1, 1), (1, 2 + 1)]),
        ("2:3", Layout("TP2+SP x PP2", 4, (*SEQUENCE, *PP2)), [(2, 0), (2, 0), (0, 2), (0, 2)]),
    ],
    ids=lambda value: value.name if isinstance(value, Layout) else str(value),
)
def test_only_boundaries_that_a_span_crosses_pay(
    megatron: ModuleType, spans: str, layout: Layout, crossings: list[tuple[int, int]]
) -> None:
    config = parity(spans, *layout.overrides)
    model, training, sharers = config.model, config.training, 2 if config.parallelism.sequence else 1
    hidden_state = model.seq_length // sharers * training.micro_batch_size * model.hidden * 4
    micro_batches = training.global_batch_size // training.micro_batch_size
    for found, (forward, backward) in zip(
        run_distributed(layout.processes, sent_bytes, config), crossings, strict=True
    ):
        assert sum(found["forward"].values()) == micro_batches * hidden_state * forward
        assert sum(found["backward"].values()) == micro_batches * hidden_state * backward
        assert found["evaluation"] == found["forward"]
    most = max(forward + backward for forward, backward in extra_messages(layout, crossings))
    predicted = choose_plan(config, local_cluster(layout.processes)).predicted
    assert predicted.pending_per_micro_batch == most * hidden_state


def extra_messages(layout: Layout, crossings: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """What is sent beyond the hidden states themselves."""
    plain = {
        "PP4": [(1, 0), (1, 1), (1, 1), (0, 1)],
        "PP2 x 2 chunks": [(2, 1), (1, 2)],
        "TP2+SP x PP2": [(1, 0), (1, 0), (0, 1), (0, 1)],
    }[layout.name]
    return [(f - f0, b - b0) for (f, b), (f0, b0) in zip(crossings, plain, strict=True)]
