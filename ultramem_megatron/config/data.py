"""Where the tokens come from."""

from dataclasses import dataclass, field
from typing import Annotated

from ultramem_megatron.config.check import Between, require_path, require_ranges
from ultramem_megatron.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Folder of indexed datasets, the sources read from it and their weights."""

    folder: str = "data_cache/quickstart"
    """Holds ``tokenizer.json`` and ``<source>/{train,validation,test}.{bin,idx}``; made by ``ultramem data``."""

    sources: dict[str, Annotated[float, Between(1e-9, 1e9)]] = field(default_factory=dict)
    """Share of each source in the training samples, any positive numbers; empty: all sources of the folder,
    by their number of tokens. Validation reports each source on its own."""

    synthetic: bool = False
    """Seeded random tokens instead of a folder, for tests and benchmarks."""

    allow_change: bool = False
    """Go on from a checkpoint that was trained on other files or with another tokenizer. False: refuse, and say what
    differs. Another order of the same files is no such change."""

    def __post_init__(self) -> None:
        require_ranges("data", self)
        require_path("data.folder", self.folder)
        for name in self.sources:
            require_path("a name in data.sources", name)
        if not self.folder and not self.synthetic:
            raise ConfigError("data.folder is empty; name a folder made by `ultramem data build`")
