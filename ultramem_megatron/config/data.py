"""Where the tokens come from."""

from dataclasses import dataclass, field

from ultramem_megatron.config.check import require_positive
from ultramem_megatron.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Folder of indexed datasets, the sources read from it and their weights."""

    folder: str = "data_cache/quickstart"
    """Holds ``tokenizer.json`` and ``<source>/{train,validation,test}.{bin,idx}``; made by ``ultramem data``."""

    sources: dict[str, float] = field(default_factory=dict)
    """Share of each source in the training samples, any positive numbers; empty: all sources of the folder,
    by their number of tokens. Validation reports each source on its own."""

    synthetic: bool = False
    """Seeded random tokens instead of a folder, for tests and benchmarks."""

    allow_change: bool = False
    """Go on from a checkpoint that was trained on other files or with another tokenizer. False: refuse, and say what
    differs. Another order of the same files is no such change."""

    def __post_init__(self) -> None:
        for name, weight in self.sources.items():
            require_positive(f"data.sources.{name}", weight)
        if not self.folder and not self.synthetic:
            raise ConfigError("data.folder is empty; name a folder made by `ultramem data build`")
