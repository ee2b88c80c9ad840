"""What is reported, and how often."""

from dataclasses import dataclass

from ultramem_megatron.config.check import require_positive


@dataclass(frozen=True, kw_only=True, slots=True)
class MonitorConfig:
    """Console, JSONL and TensorBoard are always written; this says how often."""

    log_interval: int = 10
    """Steps between console lines. JSONL and TensorBoard get every step."""

    memory_interval: int = 50
    """Steps between records of memory-layer health (slot usage, scores, output size)."""

    def __post_init__(self) -> None:
        require_positive("monitor.log_interval", self.log_interval)
        require_positive("monitor.memory_interval", self.memory_interval)
