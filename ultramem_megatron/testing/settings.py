"""Another value of each setting, and how a test can see that one takes effect at a resume.

A new field needs no entry here when doubling, flipping or the like makes a second valid value of it, and when it
changes what is learnt.
"""

import dataclasses
from collections.abc import Iterator
from enum import Enum
from typing import Any, get_type_hints

from ultramem_megatron.config.load import resolve, to_plain
from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.errors import ConfigError
from ultramem_megatron.testing.tiny import EXPERTS

OTHER: dict[str, Any] = {
    "model.layers": 4,
    "model.heads": 4,
    "model.seq_length": 64,
    "model.vocab_size": 512,
    "memory.spans": "2:2",
    "memory.heads": 4,
    "memory.side_top_m": 6,
    "memory.expansion": 9,
    "memory.parallel_size": "4",
    "memory.placement": "spread",
    "memory.node_size": "2",
    "memory.partition": "dimension_wise",
    "memory.softmax": True,
    "parallelism.expert": 2,
    "parallelism.tensor": 2,
    "parallelism.pipeline": 2,
    "training.global_batch_size": 8,
    "training.micro_batch_size": 4,
    "data.sources": {"one": 1.0},
    "resilience.bad_step": "roll_back",
    "resilience.pause_seconds": 2000.0,
}
"""Where the rule of ``other_values`` makes no second valid value."""


def fields() -> list[str]:
    """Every ``section.field`` of ``RunConfig``."""
    sections = get_type_hints(RunConfig)
    return [f"{name}.{field.name}" for name, kind in sections.items() for field in dataclasses.fields(kind)]


def value_of(config: RunConfig, field: str) -> Any:
    """Plain, as a checkpoint holds it."""
    section, name = field.split(".")
    return to_plain(config)[section][name]


def other_values(config: RunConfig, field: str) -> Iterator[Any]:
    """Values that the field has not, some of which may not be valid."""
    if field in OTHER:
        yield OTHER[field]
    value = getattr(getattr(config, field.split(".")[0]), field.split(".")[1])
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, Enum):
        yield from (member.value for member in type(value) if member is not value)
    elif isinstance(value, str):
        yield f"{value}other"
    elif isinstance(value, int):
        yield from (value * 2, value // 2, value + 1, 0)
    elif isinstance(value, float):
        yield from (value * 2, value / 2, 0.5)


def changed(config: RunConfig, field: str) -> RunConfig:
    """``config`` with another value of one field.

    Raises:
        LookupError: None of those that were tried is valid.
    """
    section, name = field.split(".")
    for value in other_values(config, field):
        if value == value_of(config, field):
            continue
        try:
            return resolve([("base", to_plain(config)), ("other", {section: {name: value}})])
        except ConfigError:
            continue
    raise LookupError(f"no second valid value of {field} is known; name one in OTHER")


PLANNED = {
    "memory.parallel_size": ("memory.partition=number_wise", "memory.parallel_size=2"),
    "memory.placement": ("memory.partition=number_wise", "memory.parallel_size=2", "memory.placement=packed"),
    "memory.partition": ("memory.partition=number_wise",),
    "memory.node_size": ("memory.partition=grid", "memory.parallel_size=8", "memory.node_size=4"),
    "parallelism.tensor": (),
    "parallelism.pipeline": (),
    "parallelism.sequence": ("parallelism.tensor=2",),
    "parallelism.virtual_pipeline": ("model.layers=4", "parallelism.pipeline=2"),
    "parallelism.expert": EXPERTS,
}
"""The plan says how they act, on eight ranks, with these settings."""
CONFIG_IS_READ = {
    *("parallelism.timeout_seconds", "training.deterministic"),
    *(field for field in fields() if field.startswith("resilience.")),
}
"""Read from the run's config where they act, which loading leaves alone; other tests show how they act."""
REPORTED = {
    *("training.eval_interval", "training.eval_batches", "training.stop_after"),
    *("checkpoint.interval", "checkpoint.keep", "monitor.log_interval", "monitor.memory_interval"),
}
"""What a whole run prints and writes shows them (``tests/training/test_resumed_runs.py``)."""
DATA = {"data.folder", "data.sources", "data.synthetic", "data.allow_change"}
OF_EXPERTS = {"model.expert_balance_weight"}
