"""What is reported, and how often."""

from dataclasses import dataclass

from ultramem_megatron.config.check import Steps, require_ranges


@dataclass(frozen=True, kw_only=True, slots=True)
class MonitorConfig:
    """Console, JSONL and TensorBoard are always written; this says how often."""

    log_interval: Steps = 10
    """Steps between console lines. JSONL and TensorBoard get every step."""

    memory_interval: Steps = 50
    """Steps between records of memory-layer health (slot usage, scores, output size)."""

    def __post_init__(self) -> None:
        require_ranges("monitor", self)
