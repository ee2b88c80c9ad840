"""The smallest run that has everything: a GPT of two blocks with one memory layer, on generated tokens."""

from pathlib import Path
from typing import Any

from ultramem_megatron.config.load import parse_override, resolve, to_yaml
from ultramem_megatron.config.run import RunConfig

TINY: dict[str, dict[str, Any]] = {
    "model": {"layers": 2, "hidden": 32, "heads": 2, "ffn_hidden": 64, "seq_length": 32, "vocab_size": 256},
    "memory": {
        "variant": "ultramem",
        "spans": "1:2",
        "keys_per_side": 16,
        "top_m": 4,
        "key_dim": 16,
        "value_dim": 16,
    },
    "training": {
        "steps": 8,
        "global_batch_size": 4,
        "micro_batch_size": 2,
        "precision": "fp32",
        "eval_interval": 0,
    },
    "data": {"synthetic": True},
    "checkpoint": {"interval": 2},
    "monitor": {"memory_interval": 2, "log_interval": 1},
}

EXPERTS = ("memory.variant=none", "model.experts=4", "model.expert_ffn_hidden=48")
"""Overrides that make it a mixture of experts instead."""


def tiny_config(*overrides: str) -> RunConfig:
    """The tiny run, changed by ``key=value`` overrides."""
    return resolve([("tiny", TINY), *map(parse_override, overrides)])


def write_tiny_config(folder: Path) -> Path:
    """``folder/tiny.yaml``, for a command line."""
    path = folder / "tiny.yaml"
    path.write_text(to_yaml(tiny_config()))
    return path
