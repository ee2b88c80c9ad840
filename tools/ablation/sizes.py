"""What recipes amount to, and whether they can be compared."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ablation.runs import Study
from ultramem_launch.verbs.info import describe
from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.units import format_count

FLOPS_TOLERANCE = 0.02  # of the baseline's; beyond it the compute is no longer the same


@dataclass(frozen=True, kw_only=True)
class Size:
    """Parameters and compute of one recipe."""

    dense: int
    tables: int
    experts: int
    flops_per_token: int
    """Forward pass."""
    steps: int
    tokens: int
    """Of the whole run."""


def size_of(config: RunConfig) -> Size:
    """What ``ultramem info`` says of ``config``, and how long it trains."""
    facts = describe(config)
    counts = facts["parameters"]
    return Size(
        dense=counts["dense"],
        tables=counts["tables"],
        experts=counts["experts"],
        flops_per_token=facts["flops_per_token"],
        steps=config.training.steps,
        tokens=config.training.steps * config.training.global_batch_size * config.model.seq_length,
    )


def sizes_of(study: Study) -> dict[str, Size]:
    """By label, in the order of the table."""
    return {label: size_of(study.runs_of(label)[0].config) for label in study.labels}


def warnings(sizes: Mapping[str, Size], baseline: str) -> list[str]:
    """A sentence for each recipe that spends other compute or tokens than ``baseline``."""
    return [f"{label}: {text}" for label, size in sizes.items() for text in _differences(size, sizes[baseline])]


def _differences(size: Size, baseline: Size) -> Iterator[str]:
    more = size.flops_per_token / baseline.flops_per_token - 1
    if abs(more) > FLOPS_TOLERANCE:
        yield f"{more:+.1%} FLOPs per token against the baseline"
    if size.tokens != baseline.tokens:
        yield f"{size.tokens:,} tokens, the baseline {baseline.tokens:,}"


def listing(study: Study) -> str:
    """The recipes as a text table, with the warnings, for people."""
    sizes = sizes_of(study)
    width = max(len("recipe"), *map(len, sizes))
    lines = [
        f"{'recipe':{width}s} {'seeds':>5s} {'dense':>10s} {'tables':>10s} {'experts':>10s} {'FLOP/token':>11s} "
        f"{'steps':>7s} {'tokens':>13s}"
    ]
    for label, size in sizes.items():
        counts = " ".join(f"{format_count(count):>10s}" for count in (size.dense, size.tables, size.experts))
        flops = format_count(size.flops_per_token)
        lines.append(f"{label:{width}s} {study.seeds:5d} {counts} {flops:>11s} {size.steps:7d} {size.tokens:13,d}")
    return "\n".join([*lines, *(f"! {warning}" for warning in warnings(sizes, study.baseline))])
