"""When two runs gave the same curve; here, as pytest explains a failed assertion of a conftest."""

import pytest

from ultramem_megatron.testing.layouts import Curve
from ultramem_megatron.testing.tolerances import LOSS_CURVE_RELATIVE as RELATIVE


def assert_same_curve(found: Curve, expected: Curve, steps: int, start: int = 0) -> None:
    """``found`` begins after step ``start`` of ``expected`` and ends with step ``steps``."""
    assert len(found.losses) == steps - start
    assert found.losses == pytest.approx(expected.losses[start:], rel=RELATIVE)
    assert found.gradient_norms == pytest.approx(expected.gradient_norms[start:], rel=RELATIVE)
