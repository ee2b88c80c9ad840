"""The bytes in optim/README.md are those of the planner."""

from pathlib import Path

import pytest

import ultramem_megatron.optim
from ultramem_megatron.config.optimizer import MomentType, OptimizerConfig
from ultramem_megatron.planning.comm_cost import BF16_BYTES, FP32_BYTES
from ultramem_megatron.planning.memory_cost import table_moments_bytes, weight_state_bytes

README = Path(ultramem_megatron.optim.__file__).with_name("README.md")


def columns() -> dict[str, dict[str, int]]:
    """Of the table that begins with "part": heading -> part -> bytes."""
    _, _, table = README.read_text().partition("| part |")
    lines = ["| part |" + table.splitlines()[0], *table.splitlines()[2:]]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[: lines.index("")]]
    headings, *parts = rows
    return {
        heading: {part[0]: int(part[column]) for part in parts}
        for column, heading in enumerate(headings)
        if heading != "part"
    }


@pytest.mark.parametrize("heading", ["bf16", "bf16, bf16 moments", "fp32", "fp32, bf16 moments"])
def test_bytes_of_an_element(heading: str) -> None:
    narrow = MomentType.BF16 if "moments" in heading else MomentType.FP32
    moments_bytes = table_moments_bytes(OptimizerConfig(table_exp_avg_dtype=narrow, table_exp_avg_sq_dtype=narrow))
    weight_bytes = BF16_BYTES if heading.startswith("bf16") else FP32_BYTES
    weight, gradient, state = weight_state_bytes(1, weight_bytes, 1, moments_bytes)
    said = columns()[heading]
    assert said["weight"] == weight
    assert said["gradient"] == gradient
    assert said["first moment"] == said["second moment"] == moments_bytes / 2
    assert said["master weight"] == state - moments_bytes
    assert said["together"] == weight + gradient + state
    assert said["a row of 128"] == 128 * said["together"]


def test_every_column_is_compared() -> None:
    assert list(columns()) == ["bf16", "bf16, bf16 moments", "fp32", "fp32, bf16 moments"]
