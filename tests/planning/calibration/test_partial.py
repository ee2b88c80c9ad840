"""A calibration that was stopped goes on, in the same circumstances alone."""

from pathlib import Path

import pytest

from ultramem_megatron.errors import PlanError
from ultramem_megatron.planning.calibration.partial import begin_or_continue, partial_path
from ultramem_megatron.testing.calibration_points import FINGERPRINT, point


def test_what_was_measured_is_there_again(tmp_path: Path) -> None:
    path = partial_path(tmp_path / "here.json")
    one, two = point("gather", 4, 64, 1e-8), point("scatter", 4, 64, 2e-8)
    begin_or_continue(path, FINGERPRINT, False).with_step("rows of 64 bytes", [one, two]).save(path)
    again = begin_or_continue(path, FINGERPRINT.model_copy(update={"date": "2026-12-24"}), False)
    assert list(again.steps) == ["rows of 64 bytes"]
    assert again.points == (one, two)


def test_other_circumstances_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "here.json.partial"
    begin_or_continue(path, FINGERPRINT, False).save(path)
    with pytest.raises(PlanError, match=r"other circumstances: processes 4 there, 8 here; delete it"):
        begin_or_continue(path, FINGERPRINT.model_copy(update={"processes": 8}), False)
    with pytest.raises(PlanError, match="not quick there"):
        begin_or_continue(path, FINGERPRINT, True)
    path.write_text("{")
    with pytest.raises(PlanError, match="delete it to begin anew"):
        begin_or_continue(path, FINGERPRINT, False)
