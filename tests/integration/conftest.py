"""Small runs, and when two gave the same curve; here, as pytest explains a failed assertion of a conftest."""

from pathlib import Path

import pytest

from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.testing.budget import is_deep
from ultramem_megatron.testing.layouts import Curve, Layout, in_few_micro_batches, train_layout
from ultramem_megatron.testing.tolerances import LOSS_CURVE_RELATIVE as RELATIVE

HASTE = () if is_deep() else ("optimizer.warmup_fraction=0", "optimizer.learning_rate=1e-2")
"""For `parity`: a rate at which two or three steps show what is a bit off, as many steps do that warm up."""


def train(config: RunConfig, layout: Layout, load: Path | None = None, save: Path | None = None) -> Curve:
    """The curve of ``config`` under ``layout``: in `make test` in as few micro-batches as it can be."""
    chosen = any(setting.startswith("training.micro_batch_size") for setting in layout.overrides)
    some = layout if is_deep() or chosen else in_few_micro_batches(config, layout)
    return train_layout(config, some, load=load, save=save)


def assert_same_curve(found: Curve, expected: Curve, steps: int, start: int = 0) -> None:
    """``found`` begins after step ``start`` of ``expected`` and ends with step ``steps``."""
    assert len(found.losses) == steps - start
    assert found.losses == pytest.approx(expected.losses[start:], rel=RELATIVE)
    assert found.gradient_norms == pytest.approx(expected.gradient_norms[start:], rel=RELATIVE)
