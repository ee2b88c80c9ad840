"""Every kernel on one device, beside its peers and the device's own bandwidth."""

import argparse
import itertools
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kernel_bench.peers import measure_peers, measure_products
from kernel_bench.timing import Clock
from ultramem_kernels.candidates import best_candidates, best_candidates_reference
from ultramem_kernels.grid_top_m import Addresses, best_slots
from ultramem_kernels.index_plan import IndexPlan, make_plan, sort_picks
from ultramem_kernels.pool import group_of, pool, pool_backward, pool_reference
from ultramem_kernels.table_update import AdamW, update_table

# Letters: N rows of the table, V value dimension, T tokens, K picks per token, E blocks, h score cores.

DEFAULT_TOKENS = 8192
EVERY_TOKENS, EVERY_SHARD = (1024, 8192, 65536), (1, 64)
CHECKED_TOKENS, CHECKED_ROWS = 64, 64
PLAIN_BYTES = 8 * 2**30
"""Gather and einsum keeps T * K rows in fp32; beyond this it is left out."""


@dataclass(frozen=True)
class Model:
    """One memory layer of the UltraMem paper, Table 3 and the published run script."""

    side: int
    """Square root of N."""
    picks: int
    value_dim: int
    heads: int
    blocks: int = 4
    cores: int = 2


MODELS = {
    "151m-x12": Model(1100, 32, 512, 2),
    "680m-x12": Model(1632, 70, 768, 2),
    "1.6b-x12": Model(1789, 84, 1024, 2),
    "v1-227m": Model(808, 160, 384, 2),
    "tiny": Model(32, 8, 48, 2),
}
REAL = tuple(name for name in MODELS if name != "tiny")


@dataclass(frozen=True)
class Line:
    """One measurement."""

    model: str
    draw: str
    tokens: int
    phase: str
    who: str
    seconds: float
    p90: float
    bytes: float
    """That must be read and written; 0 where there is no such limit."""
    copy_share: float
    error: float | None
    """Against float64, relative to the largest element; share of differing picks for retrieval."""


@dataclass
class Run:
    """What the measurements share."""

    clock: Clock
    copy_rate: float
    lines: list[Line]

    def add(
        self,
        where: tuple[str, str, int],
        phase: str,
        who: str,
        call: Callable[[], object],
        needed: float = 0,
        error: float | None = None,
        before: Callable[[], object] = lambda: None,
    ) -> None:
        """Time one call and note it."""
        times = self.clock.time(call, before)
        share = needed / times.median / self.copy_rate
        self.lines.append(Line(*where, phase, who, times.median, times.p90, needed, share, error))
        print(line_of(self.lines[-1]), file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Lookup:
    """Inputs of one lookup."""

    table_NV: Tensor
    rows_TK: Tensor
    blocks_TK: Tensor
    scores_hTK: Tensor
    grad_TEV: Tensor
    blocks: int


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Every model, draw and number of tokens that was asked for."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    clock = Clock(device, arguments.repeats)
    run = Run(clock, clock.copy_rate(), [])
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    print(
        f"{name}, torch {torch.__version__}, copy {run.copy_rate / 1e9:,.0f} GB/s read and written",
        file=sys.stderr,
        flush=True,
    )
    gathers = {}
    all_tokens = arguments.tokens or (EVERY_TOKENS if arguments.every_shape else [DEFAULT_TOKENS])
    shards = EVERY_SHARD if arguments.every_shape else [arguments.shard_of]
    for model, shard_of in itertools.product(arguments.model or REAL, shards):
        table_NV = make_table(MODELS[model], shard_of, device)
        for draw, tokens in itertools.product(arguments.draw or DRAWS, all_tokens):
            where = (model, f"{draw} /{shard_of}" if shard_of > 1 else draw, tokens)
            lookup = make_lookup(MODELS[model], table_NV, draw, tokens)
            gathers[" ".join(map(str, where))] = clock.gather_rate(table_NV, lookup.rows_TK)
            measure_lookup(run, where, lookup)
            measure_products(run, where, lookup, plain=lookup.rows_TK.numel() * table_NV.shape[1] * 4 < PLAIN_BYTES)
            measure_peers(run, where, lookup, arguments.peer or [])
        if shard_of != shards[0]:
            continue
        measure_update(run, model, table_NV)
        del table_NV
        for tokens in all_tokens:
            measure_retrieval(run, model, tokens, device)
    again = clock.copy_rate()
    return {
        "device": name,
        "torch": torch.__version__,
        "repeats": arguments.repeats,
        "rows_are_one_of": list(shards),
        "copy_bytes_per_second": [run.copy_rate, again],
        "gather_bytes_per_second": gathers,
        "lines": [asdict(line) for line in run.lines],
        "problems": problems_of(run.lines),
        "bars": bars_of(run.lines),
    }


def make_table(model: Model, shard_of: int, device: torch.device) -> Tensor:
    rows = model.side**2 // shard_of
    return torch.randn(rows, model.value_dim, device=device, dtype=torch.bfloat16)


def uniform(rows: int, shape: tuple[int, int], device: torch.device) -> Tensor:
    return torch.randint(rows, shape, device=device, dtype=torch.int32)


def zipf(rows: int, shape: tuple[int, int], device: torch.device) -> Tensor:
    """Frequency 1 / rank: the inverse of the logarithmic distribution, ranks spread over the table."""
    rank = (torch.rand(shape, device=device, dtype=torch.float64) * torch.tensor(rows + 1.0).log()).exp().long() - 1
    return (rank.clamp(0, rows - 1) * 7919 % rows).int()


def equal(rows: int, shape: tuple[int, int], device: torch.device) -> Tensor:
    return torch.full(shape, rows // 2, device=device, dtype=torch.int32)


DRAWS = {"uniform": uniform, "zipf": zipf, "equal": equal}


def make_lookup(model: Model, table_NV: Tensor, draw: str, tokens: int) -> Lookup:
    shape, device, kind = (tokens, model.picks), table_NV.device, table_NV.dtype
    return Lookup(
        table_NV,
        DRAWS[draw](table_NV.shape[0], shape, device),
        torch.randint(model.blocks, shape, device=device, dtype=torch.uint8),
        torch.randn(model.cores, *shape, device=device, dtype=kind),
        torch.randn(tokens, model.blocks, model.value_dim, device=device, dtype=kind),
        model.blocks,
    )


def measure_lookup(run: Run, where: tuple[str, str, int], lookup: Lookup) -> None:
    """pool and its gradients, embedding_bag, gather and einsum."""
    table, rows, blocks, scores = lookup.table_NV, lookup.rows_TK, lookup.blocks_TK, lookup.scores_hTK
    picks, width, cores = rows.numel(), table.shape[1], scores.shape[0]
    pooled_bytes, pick_bytes = lookup.grad_TEV.nbytes, picks * (4 + 1 + 2 * cores)
    forward = lambda: pool(table, rows, blocks, scores, lookup.blocks)  # noqa: E731
    needed = picks * width * 2 + pick_bytes + pooled_bytes
    run.add(where, "forward", "ultramem", forward, needed, error_of_forward(lookup, forward()))
    bag = bag_of(lookup)
    run.add(where, "forward", "embedding_bag, one core", bag, needed)
    if picks * width * 4 < PLAIN_BYTES:
        plain = lambda: pool_reference(table, rows, blocks, scores, lookup.blocks)  # noqa: E731
        run.add(where, "forward", "gather + einsum", plain, needed)
    distinct = int(rows.unique().numel())
    # each distinct row once, the incoming gradient once, main_grad read and written, a sort, scores and theirs
    needed = distinct * width * (2 + 8) + pooled_bytes + picks * 48 + 2 * pick_bytes
    main_grad = torch.zeros(table.shape, device=table.device)
    grad, group = lookup.grad_TEV.flatten(0, 1), group_of(blocks, lookup.blocks)

    def backward(plan: IndexPlan | None = None) -> Tensor | None:
        return pool_backward(
            grad,
            table,
            rows.view(-1),
            group,
            scores.flatten(1),
            table_grad_NV=main_grad,
            scores_need_grad=True,
            plan=plan,
        )

    backward()
    error = error_of_backward(lookup, main_grad)
    run.add(where, "backward", "ultramem", backward, needed, error)
    if table.is_cuda:
        measure_planned(run, where, lookup, backward, needed)


def measure_planned(
    run: Run, where: tuple[str, str, int], lookup: Lookup, backward: Callable[..., Tensor | None], needed: float
) -> None:
    """What training does: the plan is made beside the main stream, and backward finds it there."""
    rows_A, num_rows = lookup.rows_TK.view(-1), lookup.table_NV.shape[0]
    made = lambda: make_plan(sort_picks(rows_A), num_rows)  # noqa: E731
    run.add(where, "plan", "ultramem", made)
    plan = made()
    run.add(where, "backward", "ultramem, plan made ahead", lambda: backward(plan), needed)


def bag_of(lookup: Lookup) -> Callable[[], Tensor]:
    """The nearest that PyTorch has: one core, bags of one block each, already in order."""
    key, order = group_of(lookup.blocks_TK, lookup.blocks).sort(stable=True)
    bags = lookup.rows_TK.shape[0] * lookup.blocks
    starts = torch.searchsorted(key, torch.arange(bags, device=key.device)).int()
    rows, weights = lookup.rows_TK.reshape(-1)[order], lookup.scores_hTK[0].reshape(-1)[order]
    return lambda: F.embedding_bag(rows, lookup.table_NV, starts, mode="sum", per_sample_weights=weights)


def error_of_forward(lookup: Lookup, found_TEV: Tensor) -> float:
    few = slice(CHECKED_TOKENS)
    rows, blocks, scores = lookup.rows_TK[few], lookup.blocks_TK[few], lookup.scores_hTK[:, few]
    read = lookup.table_NV[rows.reshape(-1).long()].double()
    places = torch.arange(read.shape[0], device=read.device).view(rows.shape)
    return relative(found_TEV[few], pool_reference(read, places, blocks, scores.double(), lookup.blocks))


def error_of_backward(lookup: Lookup, main_grad_NV: Tensor) -> float:
    """Of the gradients of a few rows that were picked."""
    flat, group = lookup.rows_TK.view(-1), group_of(lookup.blocks_TK, lookup.blocks)
    checked = flat.unique()[:CHECKED_ROWS]
    expected = torch.zeros(len(checked), main_grad_NV.shape[1], dtype=torch.float64, device=flat.device)
    for place, row in enumerate(checked):
        found = (flat == row).nonzero().squeeze(1)
        grad = lookup.grad_TEV.flatten(0, 1)[group[found]].double().unflatten(1, (lookup.scores_hTK.shape[0], -1))
        weights = lookup.scores_hTK.flatten(1)[:, found].double()
        expected[place] = torch.einsum("ahw,ha->hw", grad, weights).flatten()
    return relative(main_grad_NV[checked.long()], expected)


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).abs().max() / expected.abs().max())


def measure_update(run: Run, model: str, table_NV: Tensor) -> None:
    """AdamW over a whole table, and torch's fused one, which has no narrow copy to write and clears nothing."""
    rows = min(table_NV.shape[0], 2**30 // table_NV.shape[1])
    weight = table_NV[:rows].contiguous()
    master, mean, square, grad = (torch.rand(weight.shape, device=weight.device) for _ in range(4))
    settings = AdamW(learning_rate=1e-3, beta1=0.9, beta2=0.95, epsilon=1e-8, weight_decay=0.1)
    where, elements = (model, "dense", rows), weight.numel()
    step = lambda: update_table(weight, master, mean, square, grad, 10, settings)  # noqa: E731
    run.add(where, "update", "ultramem", step, elements * 34)
    some = torch.rand(rows, 1, device=weight.device) < 0.1
    touch = lambda: grad.copy_(some.expand_as(grad))  # noqa: E731
    lazy = lambda: update_table(weight, master, mean, square, grad, 10, settings, touched_only=True)  # noqa: E731
    needed = elements * 4 + int(some.sum()) * weight.shape[1] * 30
    run.add((model, "tenth", rows), "update", "ultramem", lazy, needed, before=touch)
    parameter = torch.nn.Parameter(master)
    parameter.grad = grad
    adam = torch.optim.AdamW([parameter], lr=1e-3, fused=True)
    run.add(where, "update", "torch fused AdamW, no copy, no clearing", adam.step, elements * 28)


def measure_retrieval(run: Run, model: str, tokens: int, device: torch.device) -> None:
    """Both stages, and the same by einsum and topk."""
    shape = MODELS[model]
    side, kept, where = 2 * shape.side, shape.picks // shape.heads, (model, "normal", tokens)  # E = 4: twice the side
    scores = torch.randn(2 * shape.heads, 2, tokens, side, device=device)
    direction = torch.randn(2 * shape.heads, 2, device=device)
    stage_1 = lambda: best_candidates(scores, direction, kept)  # noqa: E731
    differing = share_differing(stage_1(), best_candidates_reference(scores, direction, kept))
    run.add(where, "stage 1", "ultramem", stage_1, scores.nbytes, differing)
    composed = lambda: torch.einsum("br,brts->bts", direction, scores).topk(kept)  # noqa: E731
    run.add(where, "stage 1", "einsum + topk", composed, scores.nbytes)
    measure_slots(run, where, shape)


def measure_slots(run: Run, where: tuple[str, str, int], shape: Model) -> None:
    """Stage 2 as a whole and its gradient, and the same by einsum, topk and gather."""
    device, kept, side = run.clock.device, shape.picks // shape.heads, 2 * shape.side
    sides = torch.randn(where[2], shape.heads, 2, 2, kept, device=device)
    cores = torch.randn(shape.heads, shape.cores, 2, 2, device=device)
    index = torch.rand(where[2], shape.heads, 2, side, device=device).topk(kept).indices
    offsets = torch.randint(side, (4, side), device=device, dtype=torch.int32)
    addresses = Addresses(side, shape.side**2, offsets)
    found, expected = best_slots(sides, index, cores, kept, addresses), composed_slots(sides, index, cores, addresses)
    places = (blocks.long() * addresses.num_rows + rows for rows, blocks, _ in (found, expected))
    contenders = {"ultramem": lambda s, c: best_slots(s, index, c, kept, addresses)}
    contenders["einsum + topk + gather"] = lambda s, c: composed_slots(s, index, c, addresses)
    errors = {"ultramem": share_differing(*places)}
    for who, call in contenders.items():
        run.add(where, "stage 2", who, lambda call=call: call(sides, cores), error=errors.get(who))
    # all picks count alike, since their order is each contender's own
    exact = gradient_of(contenders["einsum + topk + gather"], sides.double(), cores.double())()
    for who, call in contenders.items():
        gradient = gradient_of(call, sides, cores)
        run.add(where, "gradient 2", who, gradient, error=relative(gradient()[0], exact[0]))


def composed_slots(
    sides_TH2rc: Tensor, index_TH2c: Tensor, cores_Hhrr: Tensor, addresses: Addresses
) -> tuple[Tensor, Tensor, Tensor]:
    """As many picks as candidates: rows, blocks and scores as plain PyTorch has them."""
    rows, columns = sides_TH2rc.unbind(2)
    candidates = rows.shape[3]
    grid = torch.einsum("thai,hab,thbj->thij", rows, cores_Hhrr.sum(1), columns)
    flat = grid.detach().flatten(2).topk(candidates).indices
    row, column = flat // candidates, flat % candidates
    keys = (index_TH2c[:, :, 0].gather(2, row), index_TH2c[:, :, 1].gather(2, column))
    of_rows, of_columns = (
        side.gather(3, number.unsqueeze(2).expand(-1, -1, side.shape[2], -1))
        for side, number in ((rows, row), (columns, column))
    )
    return *addresses.locate_keys(*keys), torch.einsum("tham,hcab,thbm->cthm", of_rows, cores_Hhrr, of_columns)


def gradient_of(
    call: Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]], sides: Tensor, cores: Tensor
) -> Callable[[], tuple[Tensor, ...]]:
    """The backward pass of the sum of all scores."""
    leaves = (sides.clone().requires_grad_(), cores.clone().requires_grad_())
    scores = call(*leaves)[2]
    ones = torch.ones_like(scores)
    return lambda: torch.autograd.grad(scores, leaves, ones, retain_graph=True)


def share_differing(found: Tensor, expected: Tensor) -> float:
    return float((found.sort(dim=-1).values != expected.sort(dim=-1).values).double().mean())


def problems_of(lines: list[Line]) -> list[str]:
    """A fast wrong kernel does not win. bf16 rounds by 2**-9, and what nearly ties may be picked or not."""
    return [
        f"{line.model} {line.draw} {line.tokens} {line.phase}: error {line.error:.1e}"
        for line in lines
        if line.error is not None and not line.error <= 1e-2
    ]


def bars_of(lines: list[Line]) -> dict[str, Any]:
    ours = [line for line in lines if line.who == "ultramem" and line.bytes]
    return {
        "label": "needed bytes / time, as a share of a copy's",
        "names": [f"{line.model} {line.draw} {line.tokens} {line.phase}" for line in ours],
        "values": [line.copy_share for line in ours],
    }


def line_of(line: Line) -> str:
    error = "" if line.error is None else f"error {line.error:.1e}"
    where = f"{line.model:10s}{line.draw:9s}{line.tokens:9d}  {line.phase:11s}{line.who:40s}"
    return f"{where}{1e6 * line.seconds:12.1f} us  p90 {1e6 * line.p90:12.1f} us{line.copy_share:8.2f} of copy  {error}"


def table(report: dict[str, Any]) -> str:
    """Markdown."""
    copy = " and ".join(f"{rate / 1e9:,.0f}" for rate in report["copy_bytes_per_second"])
    lines = [
        f"{report['device']}, torch {report['torch']}; copy {copy} GB/s at the start and the end.",
        "",
        "| model | draw | tokens | phase | who | us | p90 | of copy | error |",
        "| --- | --- | ---: | --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for one in (Line(**line) for line in report["lines"]):
        error = "" if one.error is None else f"{one.error:.1e}"
        times = f"{1e6 * one.seconds:.1f} | {1e6 * one.p90:.1f} | {one.copy_share:.2f}"
        lines.append(f"| {one.model} | {one.draw} | {one.tokens} | {one.phase} | {one.who} | {times} | {error} |")
    return "\n".join([*lines, *(f"WRONG: {problem}" for problem in report["problems"])])
