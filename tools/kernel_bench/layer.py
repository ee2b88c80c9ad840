"""A whole memory layer on the CPU: this project's, the same in plain PyTorch, and the package ultra-mem of PyPI."""

import argparse
import gc
import importlib.util
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from kernel_bench.checkouts import passes_in_turns
from kernel_bench.timing import processor
from ultramem_megatron.config.load import resolve
from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.testing.lone_layer import build_lone_layer, draw_weights, give_main_grad

if TYPE_CHECKING:  # importing a layer imports megatron-core
    from ultramem_megatron.memory.layer import MemoryLayer

HIDDEN, VALUE_DIM, TOP_M, BLOCKS, CORES, KEY_DIM, TUCKER_RANK = 512, 256, 32, 4, 2, 128, 2
DEFAULT_TOKENS = 1024
UNTIMED_REPEATS = 3
ALLOWED_ERROR = 1e-4
"""Of output and gradients against plain PyTorch, relative to the largest element. Both are fp32."""


@dataclass(frozen=True)
class Contender:
    """One way to compute a layer."""

    name: str
    forward: Callable[[], Tensor]
    clear: Callable[[], None]
    """Before each pass: forget the gradients of the last one."""


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """All contenders, in turns."""
    environment = dict(os.environ)  # as the user has set it: a process of ours adds to it as it starts
    tokens = (arguments.tokens or [DEFAULT_TOKENS])[0]
    config = config_of(arguments.side, tokens)
    with tempfile.TemporaryDirectory(prefix="ultramem-") as folder:
        from ultramem_megatron.parallel.process import ProcessPlace, start_process

        start_process(
            ProcessPlace(rank=0, world_size=1, local_rank=0, local_world_size=1, rendezvous=f"file://{folder}/store")
        )
        torch.set_num_threads(arguments.threads)  # now, for a process shares the cores out as it starts
        layer = build(config)
        x_sbD = torch.randn(tokens, 1, HIDDEN, generator=torch.Generator().manual_seed(1)).requires_grad_()
        cotangent_sbD = torch.randn(tokens, 1, HIDDEN, generator=torch.Generator().manual_seed(2))
        contenders, left_out = contenders_of(layer, x_sbD, config)
        problems = compare(contenders[:2], layer, x_sbD, cotangent_sbD)
        seconds = time_in_turns(contenders, cotangent_sbD, arguments.repeats)
        lookups, cotangent_TEV = lookups_of(layer, x_sbD)
        lookup_seconds = time_in_turns(lookups, cotangent_TEV, arguments.repeats)
        product_seconds = time_in_turns(*dense_products_of(layer, x_sbD), arguments.repeats)
        dist.destroy_process_group()
    timed = {"layers": rows_of(seconds), "lookups": rows_of(lookup_seconds), "products": rows_of(product_seconds)}
    if arguments.against_checkout:
        timed["checkouts"], differences = against_checkout(arguments, tokens, environment)
        problems += differences
    return report_of(arguments, config, tokens, timed, problems, left_out)


def against_checkout(
    arguments: argparse.Namespace, tokens: int, environment: dict[str, str]
) -> tuple[list[dict[str, Any]], list[str]]:
    """This checkout's layer and another's. Each Tucker rank has a part of the query to itself, for the first
    checkouts know nothing else, and a key as wide as in ``config_of``."""
    sections = sections_of(arguments.side, tokens)
    sections["memory"] |= {"key_dim": TUCKER_RANK * KEY_DIM, "auxiliary_weight": 0.0}
    del sections["memory"]["key_layout"]
    settings = {"sections": sections, "tokens": tokens, "hidden": HIDDEN, "threads": arguments.threads}
    seconds, problems = passes_in_turns(
        arguments.against_checkout.resolve(), settings, environment, UNTIMED_REPEATS, arguments.repeats
    )
    return rows_of(seconds), problems


def config_of(side: int, tokens: int) -> RunConfig:
    """The layer that is measured."""
    return resolve([("bench_kernels", sections_of(side, tokens))])


def sections_of(side: int, tokens: int) -> dict[str, dict[str, Any]]:
    """An UltraMem layer with one query for all ranks and heads, as ultra-mem has it."""
    memory = {"variant": "ultramem", "spans": "1:1", "keys_per_side": side, "value_dim": VALUE_DIM, "top_m": TOP_M}
    memory |= {"heads": 1, "heads_per_query": 1, "key_dim": KEY_DIM, "key_layout": "full"}
    memory |= {"tucker_rank": TUCKER_RANK, "cores": CORES, "expansion": BLOCKS}
    model = {"layers": 1, "hidden": HIDDEN, "heads": 8, "ffn_hidden": 4 * HIDDEN, "seq_length": tokens}
    training = {"micro_batch_size": 1, "global_batch_size": 1, "precision": "fp32"}
    return {"model": model, "memory": memory, "training": training}


def build(config: RunConfig) -> "MemoryLayer":
    """The layer with its weights set, and an fp32 ``main_grad`` for the table, as in training."""
    layer = build_lone_layer(config)
    draw_weights(layer, torch.Generator().manual_seed(0))
    layer.auxiliary = (0.0, 0.0)  # the penalty of the core: no contender is timed with one
    layer.begin_step()
    give_main_grad(layer)
    return layer


def contenders_of(layer: "MemoryLayer", x_sbD: Tensor, config: RunConfig) -> tuple[list[Contender], list[str]]:
    """This project's layer first, then plain PyTorch twice, then ultra-mem; and who is not here."""
    from ultramem_megatron.testing.plain_layer import plain_forward

    def clear() -> None:
        layer.zero_grad()
        x_sbD.grad = None

    contenders = [
        Contender("ultramem_megatron", lambda: layer(x_sbD), clear),
        Contender("plain PyTorch, table gradient into main_grad", lambda: plain_forward(layer, x_sbD), clear),
        Contender(
            "plain PyTorch, table gradient by autograd", lambda: plain_forward(layer, x_sbD, dense_gradient=True), clear
        ),
    ]
    if importlib.util.find_spec("ultra_mem") is None:
        return contenders, ["ultra-mem is not installed: pip install ultra-mem==0.1.2"]
    return [*contenders, ultra_mem(x_sbD, config)], []


def lookups_of(layer: "MemoryLayer", x_sbD: Tensor) -> tuple[list[Contender], Tensor]:
    """The lookup alone, with the gradients of table and scores, for the picks of the layer; and a cotangent."""
    from ultramem_megatron.parallel.partition.base import Picks
    from ultramem_megatron.testing.plain_layer import plain_lookup

    with torch.no_grad():
        found = layer.retrieve(x_sbD)
    scores_hTK = found.scores_hTK.clone().requires_grad_()
    picks = Picks(found.rows_TK, found.blocks_TK, scores_hTK)

    def clear() -> None:
        layer.zero_grad()
        scores_hTK.grad = None

    contenders = [
        Contender("ultramem_megatron", lambda: layer.table(picks), clear),
        Contender("plain PyTorch, table gradient into main_grad", lambda: plain_lookup(layer.table, picks), clear),
    ]
    shape = (x_sbD.shape[0], BLOCKS, VALUE_DIM)
    return contenders, torch.randn(shape, generator=torch.Generator().manual_seed(3))


def dense_products_of(layer: "MemoryLayer", x_sbD: Tensor) -> tuple[list[Contender], Tensor]:
    """The matrix products that no contender does without, alone: queries and projection with their gradients, and the
    scores of all keys; and a cotangent. What they take, no kernel of a lookup can save."""
    from ultramem_kernels.product import linear, product

    x_TD = x_sbD.detach().flatten(0, 1).requires_grad_()
    pooled = torch.randn(x_TD.shape[0], BLOCKS * VALUE_DIM, generator=torch.Generator().manual_seed(4)).requires_grad_()
    query, projection = layer.retrieval.query.weight, layer.projection.weight
    keys_BSrd = layer.retrieval.keys.weight.detach().flatten(0, 1)

    def forward() -> Tensor:
        queries = linear(x_TD, query)
        for side, queries_Td in enumerate(queries.detach().chunk(2, dim=1)):
            for rank in range(TUCKER_RANK):
                product(queries_Td, keys_BSrd[side, :, rank])
        return torch.cat([queries, linear(pooled, projection)], dim=1)

    def clear() -> None:
        query.grad = projection.grad = x_TD.grad = pooled.grad = None

    shape = (x_TD.shape[0], query.shape[0] + projection.shape[0])
    return [Contender("its dense products alone", forward, clear)], torch.randn(shape)


def ultra_mem(x_sbD: Tensor, config: RunConfig) -> Contender:
    """lucidrains' package, MIT; E * N virtual slots, the value dimension in one part for each core."""
    from ultra_mem import UltraMem  # type: ignore[import-not-found]

    torch.manual_seed(0)
    layer = UltraMem(
        dim=HIDDEN,
        dim_values=VALUE_DIM // CORES,
        num_memories=config.memory.num_rows * BLOCKS,
        topk=TOP_M,
        dim_queries_keys=KEY_DIM,
        core_rank=2,
        core_heads=CORES,
        value_expansion=BLOCKS,
    )

    def clear() -> None:
        layer.zero_grad()
        x_sbD.grad = None

    return Contender(
        "ultra-mem (PyPI)", lambda: layer(x_sbD.transpose(0, 1), return_aux_loss=False)[0].transpose(0, 1), clear
    )


def compare(contenders: list[Contender], layer: "MemoryLayer", x_sbD: Tensor, cotangent_sbD: Tensor) -> list[str]:
    """What of the first contender is not what the second computes."""
    results = []
    for contender in contenders:
        main_grad = layer.table.weight.main_grad.zero_()  # type: ignore[attr-defined]
        contender.clear()
        output = contender.forward()
        output.backward(cotangent_sbD)
        found = {"output": output.detach(), "table": main_grad.clone(), "x": x_sbD.grad}
        found |= {name: p.grad for name, p in layer.named_parameters() if p is not layer.table.weight}
        results.append({name: tensor.clone() for name, tensor in found.items() if tensor is not None})
        contender.clear()
    problems = []
    for name, expected in results[1].items():
        error = float((results[0][name] - expected).abs().max() / expected.abs().max().clamp(min=1e-30))
        if not error <= ALLOWED_ERROR:
            problems.append(f"{name} is off by {error:.1e} of its largest element, allowed {ALLOWED_ERROR:.0e}")
    return problems


def time_in_turns(contenders: list[Contender], cotangent_sbD: Tensor, repeats: int) -> dict[str, list[list[float]]]:
    """Seconds of forward and of backward, for each repeat."""
    seconds: dict[str, list[list[float]]] = {contender.name: [] for contender in contenders}
    for repeat in range(UNTIMED_REPEATS + repeats):
        for contender in contenders:
            contender.clear()
            gc.collect()
            begin = time.perf_counter()
            output = contender.forward()
            middle = time.perf_counter()
            output.backward(cotangent_sbD)
            end = time.perf_counter()
            del output
            contender.clear()
            if repeat >= UNTIMED_REPEATS:
                seconds[contender.name].append([middle - begin, end - middle])
    return seconds


def rows_of(seconds: dict[str, list[list[float]]]) -> list[dict[str, Any]]:
    """Medians, and how many times as long as the first a contender takes."""
    rows: list[dict[str, Any]] = []
    for name, turns in seconds.items():
        forward, backward, both = (
            statistics.median(column) for column in zip(*((f, b, f + b) for f, b in turns), strict=True)
        )
        fastest = min(f + b for f, b in turns)
        rows.append({"name": name, "forward": forward, "backward": backward, "both": both, "fastest": fastest})
    for row in rows:
        row["times_ours"] = row["both"] / rows[0]["both"]
    return rows


def report_of(
    arguments: argparse.Namespace,
    config: RunConfig,
    tokens: int,
    timed: dict[str, list[dict[str, Any]]],
    problems: list[str],
    left_out: list[str],
) -> dict[str, Any]:
    """What was measured, and on what."""
    shape = {"hidden": HIDDEN, "rows": config.memory.num_rows, "value_dim": VALUE_DIM, "picks": TOP_M}
    shape |= {"blocks": BLOCKS, "cores": CORES, "key_dim": KEY_DIM, "tokens": tokens}
    return {
        "device": processor(),
        "torch": torch.__version__,
        "threads": arguments.threads,
        "repeats": arguments.repeats,
        "shape": shape,
        **timed,
        "left_out": left_out,
        "problems": problems,
        "bars": {
            "label": "forward + backward [ms]",
            "names": [row["name"] for row in timed["layers"]],
            "values": [1000 * row["both"] for row in timed["layers"]],
        },
    }


def table(report: dict[str, Any]) -> str:
    """Markdown, for ``benchmarks/kernels/``."""
    shape = ", ".join(f"{name} {number}" for name, number in report["shape"].items())
    lines = [
        f"{report['device']}, {report['threads']} threads, torch {report['torch']}; {shape}.",
        f"Medians of {report['repeats']}, contenders in turns.",
        "",
        "| what | who | forward [ms] | backward [ms] | both [ms] | times ours |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    lines += [row_of("layer", row) for row in report["layers"]]
    lines += [row_of("lookup alone", row) for row in report["lookups"]]
    share = report["products"][0]["both"] / report["layers"][0]["both"]
    lines += [row_of("of ours", row | {"times_ours": share}) for row in report["products"]]
    lines += [row_of("layer, a query for each rank", row) for row in report.get("checkouts", [])]
    return "\n".join(
        [*lines, "", *report["left_out"], *(f"WRONG: {problem}" for problem in report["problems"])]
    ).rstrip()


def row_of(what: str, row: dict[str, Any]) -> str:
    parts = " | ".join(f"{1000 * row[name]:.1f}" for name in ("forward", "backward", "both"))
    return f"| {what} | {row['name']} | {parts} | {row['times_ours']:.2f} |"
