"""Value tables that are updated lazily, or whose moments are bf16: the same in every layout, and after a resume."""

import dataclasses
from pathlib import Path
from types import ModuleType

import pytest

from ultramem_launch.configs import load_config
from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.testing.budget import budget
from ultramem_megatron.testing.layouts import LAYOUTS, Curve, Layout
from ultramem_megatron.testing.tolerances import LOSS_CURVE_RELATIVE as RELATIVE

from .conftest import assert_same_curve, train

STEPS, SAVE_AFTER = budget(4, 8), budget(2, 4)
LONGER = budget(6, 8)
"""Until both ways of the update differ by more than layouts do."""
LAZY = ("optimizer.table_update=lazy",)
NARROW = (*LAZY, "optimizer.table_exp_avg_dtype=bf16", "optimizer.table_exp_avg_sq_dtype=bf16")

COPIES = Layout("DP3", 3, ("memory.parallel_size=1",))
"""Three copies of a table of 1024 x 32 elements: two of their optimizer's ranges begin within a row."""
DIMENSION_WISE = Layout(
    "TP2 dimension-wise",
    4,
    ("parallelism.tensor=2", "memory.parallel_size=4", "memory.partition=dimension_wise"),
)
STAGES = Layout("PP2, a stage without tables", 2, ("parallelism.pipeline=2", "memory.partition=auto"))


def config_of(*overrides: str, stop_after: int = STEPS) -> RunConfig:
    return load_config(
        "parity",
        [
            *("optimizer.warmup_fraction=0", "model.layers=2", "memory.spans=1:2"),
            *("training.global_batch_size=12", "training.micro_batch_size=1", f"training.stop_after={stop_after}"),
            *overrides,
        ],
    )


@pytest.fixture(scope="module")
def lazy_and_dense(megatron: ModuleType) -> tuple[Curve, Curve]:
    """Both ways of the update, on one process."""
    lazy, dense = (train(config_of(*way, stop_after=LONGER), LAYOUTS[0]) for way in (LAZY, ()))
    return lazy, dense


@pytest.mark.slow
@pytest.mark.parametrize("layout", [COPIES, DIMENSION_WISE], ids=lambda layout: layout.name)
def test_lazy_tables_learn_the_same_in_every_layout(lazy_and_dense: tuple[Curve, Curve], layout: Layout) -> None:
    alone, dense = lazy_and_dense
    curve = train(config_of(*LAZY, stop_after=LONGER), layout)
    assert_same_curve(curve, alone, LONGER)
    assert curve.losses[0] == pytest.approx(dense.losses[0], rel=RELATIVE)
    assert curve.losses[-1] != pytest.approx(dense.losses[-1], rel=10 * RELATIVE), "the table is too small to tell"


@pytest.mark.slow
def test_a_resumed_run_goes_on_to_the_bit_and_in_another_layout(megatron: ModuleType, tmp_path: Path) -> None:
    """Moments in bf16 travel through a checkpoint in fp32, so nothing is lost; neither does the way of the update."""
    two = Layout("2 copies", 2, ("memory.parallel_size=1",))
    undisturbed = train(config_of(*NARROW), two)
    train(config_of(*NARROW, stop_after=SAVE_AFTER), two, save=tmp_path)
    resumed = train(config_of(*NARROW), two, load=tmp_path)
    rest = Curve(undisturbed.losses[SAVE_AFTER:], undisturbed.gradient_norms[SAVE_AFTER:])
    assert resumed == rest
    moved = train(config_of(*NARROW), DIMENSION_WISE, load=tmp_path)
    assert moved.losses == pytest.approx(rest.losses, rel=RELATIVE)
    dense = train(config_of(), LAYOUTS[0], load=tmp_path)
    assert dense.losses[0] == pytest.approx(rest.losses[0], rel=RELATIVE)


@pytest.mark.slow
def test_a_stage_without_tables_has_nothing_to_update(megatron: ModuleType, tmp_path: Path) -> None:
    config = config_of(*NARROW, "memory.spans=2:2", stop_after=4)
    alone = train(config, LAYOUTS[0])
    half = dataclasses.replace(config, training=dataclasses.replace(config.training, stop_after=2))
    train(half, STAGES, save=tmp_path)
    resumed = train(config, STAGES, load=tmp_path)
    assert resumed.losses == pytest.approx(alone.losses[2:], rel=RELATIVE)
